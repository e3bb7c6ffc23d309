"""SmolLM2-135M-Instruct through loopc against transformers: PASS or FAIL a line, exit 1 if any failed.

    python check_smollm2.py LOOPC SMOLLM2 --greedy GREEDY.json --eval EVAL.json --text austen.txt [--threads 2]

GREEDY.json and EVAL.json are what smollm2_reference.py wrote. Checked, all in f32:
- `loopc generate --max-new-tokens 64` gives the same tokens greedily until end-of-text (the 30th), and the text starts with " Paris";
- all 64 tokens of the continuation that never stops are the argmax of `loopc logits` over the prompt and the continuation itself, which is
  the same statement as greedy equality: if the first n are equal, the next is drawn from the same prefix;
- `loopc eval` gives the same loss on the first 20,000 tokens within 1e-4, over as many predictions;
- `loopc retrofit --gate-bias 20` in modes layer and restart keeps the base's logits (gates within 2e-9 of 1, so f32 rounding is what is left);
- `stack` reads every layer twice, so its logits must be finite and NOT the base's.
needs: pip install safetensors numpy
"""
import argparse, json, pathlib, subprocess, tempfile
import numpy as np
from safetensors.numpy import load_file

failed = 0


def report(ok, name, detail):
    global failed
    failed += not ok
    print(f"{'PASS' if ok else 'FAIL'} {name}: {detail}", flush=True)


def check(name):
    """A check returns (ok, detail); whatever it raises is a failure with its text."""
    def run(f):
        try:
            report(*(lambda r: (bool(r[0]), name, r[1]))(f()))
        except Exception as e:
            stderr = getattr(e, "stderr", None) or ""
            report(False, name, f"{e!r} {stderr.strip()[-600:]}")
    return run


def main():
    p = argparse.ArgumentParser()
    p.add_argument("loopc")
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("--greedy", type=pathlib.Path, required=True)
    p.add_argument("--eval", type=pathlib.Path, required=True)
    p.add_argument("--text", type=pathlib.Path, required=True)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    greedy, loss = json.loads(a.greedy.read_text()), json.loads(a.eval.read_text())

    def loopc(*arguments):
        command = [a.loopc, *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    common = ("--dtype", "f32", "--threads", a.threads, "--json")

    def first_difference(want, have):
        return next((i for i, (x, y) in enumerate(zip(want, have)) if x != y), min(len(want), len(have)))

    @check("generate, greedy until end-of-text")
    def _():
        got = json.loads(loopc("generate", a.folder, "--prompt", greedy["prompt"], "--max-new-tokens", 64, *common))
        # transformers keeps the end-of-text token; whether loopc reports it is its own affair, where it stops is not.
        end = greedy["tokens_64"][len(greedy["tokens"]) - 1] if len(greedy["tokens"]) < 64 else None
        want, have = ([t for t in tokens if t != end] for tokens in (greedy["tokens"], got["tokens"]))
        ok = want == have and got["text"].startswith(" Paris")
        return ok, f"{first_difference(want, have)} of {len(want)} equal, {len(have)} given; {got['text'][:50]!r}"

    @check("eval, 20,000 tokens")
    def _():
        got = json.loads(loopc("eval", a.folder, "--text", a.text, "--context", loss["context"], "--max-tokens", loss["tokens"], *common))
        far = abs(got["loss"] - loss["loss"])
        counted = got.get("predictions", loss["predictions"])
        return far <= 1e-4 and counted == loss["predictions"], f"{got['loss']:.6f}, transformers {loss['loss']:.6f}, {far:.1e} apart, {counted} predictions"

    # Longer than the window of 16, so that the local pass differs from the global one.
    tokens = (greedy["prompt_ids"] + greedy["tokens_64"])[:48]
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)

        def logits(folder, out, tokens=tokens):
            loopc("logits", folder, "--tokens", ",".join(map(str, tokens)), "-o", tmp / out, *common)
            return load_file(tmp / out)["logits"]

        @check("64 greedy tokens through end-of-text")
        def _():
            whole = greedy["prompt_ids"] + greedy["tokens_64"][:-1]
            have = logits(a.folder, "greedy.safetensors", whole)[0, len(greedy["prompt_ids"]) - 1 :].argmax(-1).tolist()
            return have == greedy["tokens_64"], f"{first_difference(greedy['tokens_64'], have)} of 64 equal"

        base = None

        @check("logits of the base")
        def _():
            nonlocal base
            found = logits(a.folder, "base.safetensors")
            base = found if np.isfinite(found).all() else None
            # Position 4 ends the prompt: its argmax is the first greedy token.
            first = int(found[0, len(greedy["prompt_ids"]) - 1].argmax())
            return base is not None and first == greedy["tokens"][0], f"{found.shape}, next token {first}, transformers {greedy['tokens'][0]}"

        for mode in ("layer", "restart", "stack"):
            @check(f"retrofit, {mode}, gate bias 20")
            def _():
                assert base is not None, "the base has no logits to compare with"
                loopc("retrofit", a.folder, "--mode", mode, "--window", 16, "--gate-bias", 20, "-o", tmp / mode)
                found = logits(tmp / mode, mode + ".safetensors")
                far = np.abs(found - base).max() / np.abs(base).max()
                ok = np.isfinite(found).all() and (far <= 1e-4 if mode != "stack" else far > 1e-2)
                return ok, f"{far:.1e} of max|logit| from the base" + (" (another function: far is right)" if mode == "stack" else "")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
