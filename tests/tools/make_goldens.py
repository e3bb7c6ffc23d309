"""Regenerate tests/goldens: small checkpoints, and what loop_qwen3.py says about them in float64.

    python make_goldens.py [OUT] [--only NAME ...] [--gradients-alone | --gates-alone]

needs: pip install torch safetensors numpy.  The table CASES below is the whole content; OUT/README.md describes the files.
"""
import argparse, json, pathlib, shutil, subprocess, sys
import torch
from safetensors.torch import save_file
import loop_qwen3 as reference

HERE = pathlib.Path(__file__).resolve().parent
SMALL = dict(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=16, intermediate=40, vocab=97, window=4, theta=10000.0)

# name -> (options of make_checkpoint.py over SMALL, [(batch, T)], edit of config.json or None)
# T runs over 1, W - 1, W, W + 1 and beyond, so that a window that is one too wide or too narrow shows.
CASES = {
    "base": (dict(mode="base", vocab=131), [(1, 1), (1, 7), (2, 12)]),
    "layer": (dict(mode="layer", vocab=131), [(1, 1), (1, 3), (1, 4), (1, 5), (2, 13)]),
    "restart": (dict(mode="restart"), [(1, 1), (1, 3), (1, 4), (1, 5), (2, 13)]),
    "stack": (dict(mode="stack"), [(1, 1), (1, 3), (1, 4), (1, 5), (2, 13)]),
    "stack-loops3": (dict(mode="stack", loops=3, window=5, layers=1), [(1, 4), (1, 5), (1, 6), (2, 11)]),
    "restart-loops3": (dict(mode="restart", loops=3, window=3, layers=2), [(1, 2), (1, 3), (1, 4), (2, 9)]),
    "layer-window1": (dict(mode="layer", window=1, layers=1), [(1, 1), (1, 2), (2, 9)]),
    "restart-window1": (dict(mode="restart", window=1, layers=1), [(1, 1), (1, 2), (2, 9)]),
    "layer-window-wide": (dict(mode="layer", window=100, layers=1), [(1, 1), (2, 17)]),
    "stack-window-wide": (dict(mode="stack", window=100, layers=1), [(1, 1), (2, 17)]),
    "layer-kv1-d32": (dict(mode="layer", kv_heads=1, heads=3, head_dim=32, hidden=48, layers=1, vocab=61, window=7), [(1, 6), (1, 7), (1, 8), (2, 19)]),
    "restart-kv1-d64": (dict(mode="restart", kv_heads=1, heads=2, head_dim=64, layers=1, vocab=53, window=7), [(1, 6), (1, 7), (1, 8), (2, 19)]),
    "layer-d128": (dict(mode="layer", kv_heads=1, heads=2, head_dim=128, layers=1, vocab=67, window=16), [(1, 1), (1, 15), (1, 16), (1, 17), (1, 40)]),
    "base-mha-d64": (dict(mode="base", heads=2, kv_heads=2, head_dim=64, layers=1, vocab=17, theta=1e6), [(1, 1), (2, 33)]),
    "layer-untied-f16": (dict(mode="layer", untied=True, dtype="float16"), [(1, 1), (1, 5), (2, 13)]),
    "stack-bf16-sharded": (dict(mode="stack", dtype="bfloat16", shards=3), [(1, 1), (1, 5), (2, 13)]),
    "layer-bf16": (dict(mode="layer", dtype="bfloat16", hidden=64, intermediate=96, vocab=131), [(1, 1), (1, 5), (2, 13)]),
    "restart-untied-sharded": (dict(mode="restart", untied=True, shards=2, layers=1), [(1, 1), (1, 5), (2, 13)]),
    "llama-base": (dict(mode="base", family="llama", eps=1e-5, dtype="bfloat16"), [(1, 1), (2, 13)]),
    "llama-layer": (dict(mode="layer", family="llama", eps=1e-5), [(1, 1), (1, 5), (2, 13)]),
    "llama-no-head-dim": (dict(mode="base", family="llama", heads=2, head_dim=16, layers=1), [(1, 1), (2, 9)], dict(drop=["head_dim"])),
    "iquest": (dict(mode="stack", family="llama", iquest_keys=True, untied=True, window=4, layers=1), [(1, 4), (1, 5), (2, 13)], dict(model_type="iquestloopcoder", architectures=["IQuestLoopCoderForCausalLM"])),
    "rope-parameters": (dict(mode="layer", layers=1, theta=500000.0), [(1, 1), (1, 5), (2, 13)], dict(rope_parameters={"rope_theta": 500000.0, "rope_type": "default"}, drop=["rope_theta"])),
}
# Folders that also keep the gradients of every parameter, for their last shape.
GRADIENTS = ("base", "layer", "restart", "stack", "stack-loops3", "restart-loops3", "layer-kv1-d32", "layer-untied-f16", "llama-layer")
# Folders that also keep the gates of every trip and layer, for their last shape.
GATES = ("layer", "restart", "stack", "stack-loops3", "restart-loops3", "layer-kv1-d32")
# Checkpoints that are not kept, only what bfloat16 costs PyTorch on them: name -> (options, batch, T)
YARDSTICK = {
    "layer-256": (dict(mode="layer", layers=4, hidden=256, heads=8, kv_heads=2, head_dim=32, intermediate=512, vocab=512, window=16, std=0.05), 2, 64),
    "restart-256": (dict(mode="restart", layers=4, hidden=256, heads=8, kv_heads=2, head_dim=32, intermediate=512, vocab=512, window=16, std=0.05), 2, 64),
    "stack-256": (dict(mode="stack", layers=4, hidden=256, heads=8, kv_heads=2, head_dim=32, intermediate=512, vocab=512, window=16, std=0.05), 2, 64),
}


def flags(options):
    out = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        out += [] if value is False else [flag] if value is True else [flag, str(value)]
    return out


def checkpoint(folder, options, seed, edit=None):
    subprocess.run([sys.executable, HERE / "make_checkpoint.py", folder, "--seed", str(seed), *flags(options)], check=True)
    if edit:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for key in edit.get("drop", []):
            del config[key]
        config |= {k: v for k, v in edit.items() if k != "drop"}
        path.write_text(json.dumps(config, indent=2) + "\n")


def draw(vocab, batch, length, seed):
    """Token ids; the first and the last id of the vocabulary are always among them where they fit."""
    tokens = torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))
    tokens[0, -1] = vocab - 1
    if length > 1:
        tokens[-1, 0] = 0
    return tokens


def gradients(folder, tokens):
    """The loss and d loss / d parameter, in float64 from the stored weights, stored as float32."""
    model = reference.Model(reference.Config(folder), reference.load(folder, torch.float64))
    loss = model.loss(tokens)
    loss.backward()
    out = {"loss": loss.detach()} | {f"grad.{k}": v.grad for k, v in model.w.items() if v.grad is not None}
    return {"tokens": tokens.to(torch.int32)} | {k: v.to(torch.float32).contiguous() for k, v in out.items()}


def gates(folder, tokens):
    """What every gate says in float64, stored as float32: gate.{trip}.{layer} [B, H, T]. The first trip has gates in mode layer alone."""
    model = reference.Model(reference.Config(folder), reference.load(folder, torch.float64))
    first, said, gate = 1 if model.c.mode == "layer" else 2, {}, model.gate

    def watched(q, i):
        g = gate(q, i)
        trip = first + sum(name.endswith(f".{i}") for name in said)
        said[f"gate.{trip}.{i}"] = g.detach().squeeze(-1)
        return g

    model.gate = watched
    model.logits(tokens)
    return {"tokens": tokens.to(torch.int32)} | {k: v.to(torch.float32).contiguous() for k, v in said.items()}


def golden(folder, tokens):
    """Logits and mean next-token loss (absent for T = 1, which predicts nothing) in float64, stored as float32."""
    model = reference.Model(reference.Config(folder), reference.load(folder, torch.float64))
    out = {"tokens": tokens, "logits": model.logits(tokens).detach()}
    if tokens.shape[1] > 1:
        out["loss"] = model.loss(tokens).detach()
    return {k: v.to(torch.int32 if k == "tokens" else torch.float32).contiguous() for k, v in out.items()}


def bf16_error(folder, tokens):
    """PyTorch's own error in bfloat16, weights and activations, against float64 of the same bfloat16 weights.

    The reference's `rope` builds its angles in the activations' type: in bfloat16 that would be its error, not the type's.
    So rope runs in float32 here and rounds its result, as transformers does.
    """
    with torch.no_grad():
        exact = reference.Model(reference.Config(folder), reference.load(folder, torch.float64)).logits(tokens)
        rope = reference.rope
        reference.rope = lambda x, theta: rope(x.float(), theta).to(x.dtype)
        try:
            rough = reference.Model(reference.Config(folder), reference.load(folder, torch.bfloat16)).logits(tokens)
        finally:
            reference.rope = rope
    return (rough.double() - exact).abs().max().item(), exact.abs().max().item()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out", nargs="?", type=pathlib.Path, default=HERE.parent / "goldens")
    p.add_argument("--only", nargs="*", default=None, help="these cases; cases.json is then left alone")
    alone = p.add_mutually_exclusive_group()
    alone.add_argument("--gradients-alone", action="store_true", help="keep the checkpoints and write the gradients of GRADIENTS")
    alone.add_argument("--gates-alone", action="store_true", help="keep the checkpoints and write the gates of GATES")
    a = p.parse_args()
    torch.manual_seed(0)
    keep = a.gradients_alone or a.gates_alone
    listing = []
    for n, (name, (options, shapes, *edit)) in enumerate(CASES.items()):
        options = SMALL | options
        files = []
        for batch, length in shapes:
            files.append({"file": f"golden_B{batch}_T{length}.safetensors", "batch": batch, "tokens": length})
        listing.append({"name": name, "mode": options["mode"], "family": options.get("family", "qwen3"), "window": options["window"], "goldens": files})
        if a.only is not None and name not in a.only:
            continue
        folder = a.out / name
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            checkpoint(folder, options, 100 + n, *edit)
        for f in files:
            tokens = draw(options["vocab"], f["batch"], f["tokens"], 1000 * n + f["tokens"])
            if not keep:
                save_file(golden(folder, tokens), folder / f["file"])
            if name in GATES and f is files[-1] and not a.gradients_alone:
                save_file(gates(folder, tokens), folder / f["file"].replace("golden", "gates"))
            if name in GRADIENTS and f is files[-1] and not a.gates_alone:
                save_file(gradients(folder, tokens), folder / f["file"].replace("golden", "gradients"))
    if a.only is not None or keep:
        return
    bf16 = []
    kept = {name: CASES[name][1][-1] for name in ("layer-bf16", "stack-bf16-sharded", "llama-base")}
    for name, (batch, length) in kept.items():
        n = list(CASES).index(name)
        tokens = draw((SMALL | CASES[name][0])["vocab"], batch, length, 1000 * n + length)
        error, largest = bf16_error(a.out / name, tokens)
        bf16.append({"name": name, "kept": True, "file": f"golden_B{batch}_T{length}.safetensors", "max_error": error, "max_logit": largest})
    for n, (name, (options, batch, length)) in enumerate(YARDSTICK.items()):
        folder = a.out / ".yardstick"
        options = dict(options, dtype="bfloat16")
        checkpoint(folder, options, 500 + n)
        error, largest = bf16_error(folder, draw(options["vocab"], batch, length, 5000 + n))
        arguments = " ".join(map(str, flags(options))) + f" --seed {500 + n}"
        bf16.append({"name": name, "kept": False, "batch": batch, "tokens": length, "max_error": error, "max_logit": largest, "make_checkpoint": arguments})
        shutil.rmtree(folder)
    (a.out / "cases.json").write_text(json.dumps({"cases": listing, "pytorch_bf16": bf16, "torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
