"""PyTorch + transformers on a plain Qwen3 folder: prefill of N tokens with the last position's logits, then decoding at that depth.

    python transformers_prefill_decode.py FOLDER [--compile] [--dtype bfloat16] [--threads 2] [--prompt 512] [--new 32] [--repeats 3]

One JSON object on standard output: {"prefill_tok_s", "decode_tok_s", ...}, each the best of the repeats. Ids are random: the time does
not depend on them. needs: pip install torch transformers
"""
import argparse, json, time
import torch
import transformers


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    for name, value in dict(threads=2, prompt=512, new=32, repeats=3).items():
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--compile", action="store_true", help="torch.compile the model (minutes of warm-up, not counted)")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(a.folder, dtype=getattr(torch, a.dtype)).eval()
    ids = torch.randint(model.config.vocab_size, (1, a.prompt + a.new), generator=torch.Generator().manual_seed(1))
    prefill = decode = float("inf")
    if a.compile:
        model.forward = torch.compile(model.forward)
    with torch.inference_mode():
        # First-call costs are not the model's; a compiled one meets its shapes here.
        out = model(ids[:, : a.prompt if a.compile else 16], use_cache=True, logits_to_keep=1)
        for t in range(a.prompt, a.prompt + 4 if a.compile else a.prompt):
            out = model(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        for _ in range(a.repeats):
            start = time.perf_counter()
            out = model(ids[:, : a.prompt], use_cache=True, logits_to_keep=1)
            prefill = min(prefill, time.perf_counter() - start)
            assert out.logits.shape[1] == 1
            start = time.perf_counter()
            for t in range(a.prompt, a.prompt + a.new):
                out = model(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
            decode = min(decode, time.perf_counter() - start)
    print(json.dumps({
        "engine": "torch.compile" if a.compile else "transformers", "dtype": a.dtype, "threads": a.threads, "prompt": a.prompt, "new": a.new, "repeats": a.repeats,
        "prefill_tok_s": round(a.prompt / prefill, 2), "decode_tok_s": round(a.new / decode, 2),
        "torch": torch.__version__, "transformers": transformers.__version__, "attention": model.config._attn_implementation,
    }))


if __name__ == "__main__":
    main()
