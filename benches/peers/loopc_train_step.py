"""Tokens per second of `loopc train`'s best step, and its peak memory.

    python loopc_train_step.py LOOPC FOLDER TEXT --trainable gates [--batch 4] [--context 512] [--steps 4] [--no-fuse]

Prints, last, {"train_tok_s": ..., "peak_gb": ...}.
"""
import argparse, json, pathlib, resource, subprocess, tempfile


def main():
    p = argparse.ArgumentParser()
    p.add_argument("loopc")
    p.add_argument("folder")
    p.add_argument("text")
    p.add_argument("--trainable", default="gates")
    p.add_argument("--batch", default="4")
    p.add_argument("--context", default="512")
    p.add_argument("--steps", default="4")
    p.add_argument("--threads", default="2")
    p.add_argument("--dtype", default="bf16")
    p.add_argument("--no-fuse", action="store_true")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        numbers = [f"--{key}={getattr(a, key)}" for key in ("trainable", "batch", "context", "steps", "threads", "dtype")]
        command = [a.loopc, "train", a.folder, "--data", a.text, "--output", run, "--rate=1e-5", *numbers, *["--no-fuse"] * a.no_fuse]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    best = max(line["tokens_per_second"] for line in lines if line.get("tokens_per_second"))
    print(json.dumps({"train_tok_s": round(best, 2), "peak_gb": round(peak, 2)}))


if __name__ == "__main__":
    main()
