"""llama.cpp on the same plain Qwen3 as a GGUF: prefill of N tokens, and decoding at that depth, through llama-bench.

    python llama_bench.py LLAMA_BENCH MODEL.gguf [--threads 2] [--prompt 512] [--new 32] [--repeats 3]

One JSON object on standard output, as transformers_prefill_decode.py. Each number is the best of the repeats, as for the others.
"""
import argparse, json, subprocess


def measure(a, *work):
    command = [a.llama_bench, "-m", a.model, "-t", str(a.threads), "-r", str(a.repeats), "-o", "json", *map(str, work)]
    (row,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return row, max(row["samples_ts"])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("llama_bench")
    p.add_argument("model")
    for name, value in dict(threads=2, prompt=512, new=32, repeats=3).items():
        p.add_argument(f"--{name}", type=int, default=value)
    a = p.parse_args()
    row, prefill = measure(a, "-p", a.prompt, "-n", 0)
    _, decode = measure(a, "-p", 0, "-n", a.new, "-d", a.prompt)
    print(json.dumps({
        "engine": "llama.cpp", "dtype": row["model_type"], "threads": a.threads, "prompt": a.prompt, "new": a.new, "repeats": a.repeats,
        "prefill_tok_s": round(prefill, 2), "decode_tok_s": round(decode, 2), "build": row["build_commit"],
    }))


if __name__ == "__main__":
    main()
