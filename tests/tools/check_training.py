"""Replays runs of `loopc train` in PyTorch and compares the curves, step by step.

    python check_training.py LOOPC [--steps 200] [--modes layer,restart,stack,base] [--trainable gates,gates+norms,all]

Small random models (make_checkpoint.py) are trained on text of this repository by both. What a run did is read from what it left:
the recipe from checkpoint/recipe.toml, the windows of each step from metrics.jsonl. The model is loop_qwen3.py, the optimizer
torch.optim.AdamW, the norm torch's clip_grad_norm_; the schedule is written here a second time. Prints a row per run; exits with 1
if a loss is off by more than 1e-3 of it, or if what a base run wrote is not what transformers loads. Needs torch, safetensors and
tokenizers; without transformers that last check is left out, and said to be.
"""
import argparse, json, math, os, pathlib, re, shutil, subprocess, sys, tempfile, tomllib
import torch
from tokenizers import Tokenizer

TOOLS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS))
import loop_qwen3

TOKENIZER = TOOLS.parent / "models/austen/tokenizer.json"
DATA = [TOOLS / "loop_qwen3.py", TOOLS / "make_goldens.py"]
HELD_OUT = TOOLS / "make_goldens.py"
TOLERANCE = 1e-3
# Every part of the step shows: groups of their own, decay, clipping, warm-up, micro-batches, more than one epoch.
RECIPE = """
trainable = "{trainable}"
context = 32
batch = 2
accumulate = 2
steps = {steps}
seed = 3
rate = 1e-3
decay = 0.1
beta2 = 0.95
clip = 0.7
schedule = "{schedule}"
warmup = 10
floor = 0.2
validate_every = 50
validate_tokens = 1000
checkpoint_every = 0
[gates]
rate = 3e-2
decay = 0.01
[norms]
rate = 5e-3
"""


def group(name):
    if name.startswith("model.gate_projections."):
        return "gates"
    return "norms" if name.endswith("norm.weight") else "rest"


def is_trained(name, trainable):
    if trainable in ("gates", "gates+norms", "all"):
        return trainable == "all" or group(name) in trainable.split("+")
    return re.search(trainable, name) is not None


def part(recipe, step):
    """The schedule's part of the rate at a step, from 1: linear warm-up, then down to the floor."""
    warmup, steps, floor = recipe["warmup"], recipe["steps"], recipe["floor"]
    if step <= warmup:
        return step / warmup
    done = (step - warmup) / (steps - warmup)
    shape = {"constant": lambda: None, "linear": lambda: 1 - done, "cosine": lambda: (1 + math.cos(math.pi * done)) / 2}
    left = shape[recipe["schedule"]]()
    return 1.0 if left is None else floor + (1 - floor) * left


def replay(folder, recipe, tokens, lines):
    """Losses and gradient norms of the steps in `lines`, and the model after them."""
    config, weights = loop_qwen3.Config(folder), loop_qwen3.load(folder, torch.float32)
    model = loop_qwen3.Model(config, weights)
    trained = {n: w for n, w in weights.items() if is_trained(n, recipe["trainable"])}
    for name, w in weights.items():
        w.requires_grad_(name in trained)
    groups = []
    for name in ("gates", "norms", "rest"):
        own = recipe.get(name, {})
        members = [w for n, w in trained.items() if group(n) == name]
        decay = own.get("decay", recipe["decay"] if name == "rest" else 0.0)
        if members:
            groups.append(dict(params=members, top=own.get("rate", recipe["rate"]), weight_decay=decay))
    adamw = torch.optim.AdamW(groups, betas=(recipe["beta1"], recipe["beta2"]), eps=recipe["eps"])
    losses, norms = [], []
    for line in lines:
        for g in adamw.param_groups:
            g["lr"] = g["top"] * part(recipe, line["step"])
        batch = torch.stack([tokens[at : at + recipe["context"] + 1] for at in line["windows"]])
        adamw.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(list(trained.values()), recipe["clip"]).item())
        adamw.step()
        losses.append(loss.item())
    return losses, norms, model


def eval_loss(loss_sum, tokens, context):
    """As `loopc eval`: windows that do not overlap; `loss_sum` of a window [1, n] predicts all tokens but the first."""
    windows = [w[None] for w in tokens.split(context) if len(w) > 1]
    with torch.no_grad():
        return sum(loss_sum(w).item() for w in windows) / sum(w.shape[1] - 1 for w in windows)


def transformers_says(checkpoint, tokens, context):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return eval_loss(lambda w: model(w, labels=w).loss * (w.shape[1] - 1), tokens, context)


def off(ours, theirs):
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("loopc", type=pathlib.Path)
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--modes", default="layer,restart,stack,base")
    p.add_argument("--trainable", default="gates,gates+norms,all")
    a = p.parse_args()
    torch.set_num_threads(1)  # models this small gain nothing from more
    encode = lambda text: Tokenizer.from_file(str(TOKENIZER)).encode(text, add_special_tokens=False).ids
    # Every document ends with the end-of-text token of config.json.
    tokens = torch.tensor([t for f in DATA for t in [*encode(f.read_text()), 0]])
    held_out = torch.tensor(encode(HELD_OUT.read_text()))
    bad = []
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        env = dict(os.environ, LOOPC_CACHE=str(work / "cache"), HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
        print(f"{'mode':8} {'trainable':12} {'loopc':>19} {'torch':>19} {'loss off':>9} {'norm off':>9} {'held out':>9} {'off':>8}")
        for mode in a.modes.split(","):
            model = work / mode
            make = [sys.executable, TOOLS / "make_checkpoint.py", model, "--mode", mode, "--vocab", "2048", "--window", "8"]
            subprocess.run([*make, "--std", "0.05", "--theta", "10000"], check=True)
            shutil.copy(TOKENIZER, model)
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps(config | {"eos_token_id": 0}))
            for i, trainable in enumerate(a.trainable.split(",")):
                if mode == "base" and trainable == "gates":
                    continue  # it has none
                out = work / f"{mode}-{trainable}"
                schedule = ["linear", "constant", "cosine"][i % 3]
                (work / "recipe.toml").write_text(RECIPE.format(trainable=trainable, steps=a.steps, schedule=schedule))
                run = [a.loopc, "train", model, "--output", out, "--recipe", work / "recipe.toml", "--validation", HELD_OUT, "--threads", "1", "--data", *DATA]
                subprocess.run(run, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                recipe = tomllib.loads((out / "checkpoint/recipe.toml").read_text())
                lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
                steps = [line for line in lines if "loss" in line]
                assert [line["step"] for line in steps] == list(range(1, a.steps + 1)), "metrics.jsonl has each step once"
                losses, norms, trained = replay(model, recipe, tokens, steps)
                ours = [line["loss"] for line in steps]
                worst, worst_norm = off(ours, losses), off([line["gradient_norm"] for line in steps], norms)
                said = [line["validation"] for line in lines if "validation" in line][-1]
                text = held_out[: recipe["validate_tokens"]]
                wanted = eval_loss(lambda w: trained.loss(w) * (w.shape[1] - 1), text, recipe["context"])
                row = f"{ours[0]:9.5f} {ours[-1]:9.5f} {losses[0]:9.5f} {losses[-1]:9.5f} {worst:9.1e} {worst_norm:9.1e} {said:9.5f} {abs(said / wanted - 1):8.1e}"
                fine = worst <= TOLERANCE and abs(said / wanted - 1) <= TOLERANCE
                print(f"{mode:8} {trainable:12} {row}{'' if fine else '  FAILED'}", flush=True)
                if not fine:
                    bad.append(f"{mode}, {trainable}")
                if mode != "base":
                    continue
                try:
                    loaded = transformers_says(out / "checkpoint", text, recipe["context"])
                except ModuleNotFoundError as e:
                    print(f"{'':21} not loaded by transformers: {e}")
                    continue
                print(f"{'':21} loaded by transformers: {loaded:.6f}, the run said {said:.6f}")
                if abs(loaded - said) > 1e-4:
                    bad.append(f"{mode}, {trainable}: transformers")
    if bad:
        print("FAILED: " + "; ".join(bad))
        sys.exit(1)
    print("all curves agree")


if __name__ == "__main__":
    main()
