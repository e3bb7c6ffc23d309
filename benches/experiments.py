"""Loop Attention in small: does a retrofit with trained gates read better than the plain model it came from?

    python3 benches/experiments.py WORK --text BOOKS.txt ... [--seeds 1,2,3] [--base-steps N] [--steps N] > tables.md
    python3 benches/experiments.py WORK --text BOOKS.txt ... --pretrained FOLDER [--steps N] > tables.md

Splits the texts into training and held-out chapters (the last ones of each book), trains a base from scratch (`loopc init`, `loopc train`)
or takes a pretrained one, retrofits it with each mode, trains each by two recipes (Run 1: gates, context 512; Run 2: gates and norms,
context 1024), and trains the base for as long: its norms alone by Run 2, and all of it. Everything is evaluated on the held-out chapters.

A step whose result is in WORK is not done again, so a run that was stopped goes on; other settings want another WORK. Standard library
only; all work is done by the binary.
"""

import argparse
import contextlib
import json
import math
import pathlib
import re
import shutil
import statistics
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

MODES = ["layer", "restart", "stack"]
# What differs between trainings; the rest are the binary's defaults. What is trained and the contexts are those of recipes/run1.toml and
# run2.toml; the rates are higher (x30 for gates, x10 for norms), because runs here take tens of steps and not a thousand.
RECIPES = {
    "run1": {"trainable": "gates", "context": 512, "rate": 3e-2, "schedule": "cosine", "clip": 1.0},
    "run2": {"trainable": "gates+norms", "context": 1024, "rate": 3e-2, "norms": {"rate": 1e-3}, "schedule": "cosine", "clip": 1.0},
    "all": {"trainable": "all", "context": 1024, "rate": 3e-4, "decay": 0.1, "beta2": 0.95, "schedule": "cosine", "clip": 1.0},
    "base": {"trainable": "all", "context": 1024, "rate": 2e-3, "decay": 0.1, "beta2": 0.95, "schedule": "cosine", "clip": 1.0},
}
AUTHOR = re.compile(r"^([Bb]y\s+)[A-Z][a-z]+ [A-Z][a-z]+( \(\d+\))?\n", re.MULTILINE)
CHAPTER = re.compile(r"^(chapter|act|scene)\b", re.IGNORECASE)


def books(text):
    """Cuts a text at lines `by Somebody`; a title above one stays with the book before."""
    cuts = [m.start() for m in AUTHOR.finditer(text)]
    cuts = [0, *cuts[1:], len(text)]
    return [text[a:b] for a, b in zip(cuts, cuts[1:])]


def chapters(book):
    """Cuts a book at its headings, or at its paragraphs if it has none. Nothing is lost: joined, they are the book."""
    lines = book.splitlines(keepends=True)
    cuts = [i for i, line in enumerate(lines) if CHAPTER.match(line)]
    if len(cuts) < 2:
        cuts = [i for i in range(1, len(lines)) if lines[i].strip() and not lines[i - 1].strip()]
    cuts = sorted({0, *cuts}) + [len(lines)]
    return ["".join(lines[a:b]) for a, b in zip(cuts, cuts[1:])]


def split(texts, part):
    """Training text, held-out text: the last chapters of each book, at least one and at most `part` of it if it has that many."""
    train, held_out = [], []
    for path in texts:
        for book in books(path.read_text(encoding="utf-8")):
            pieces = chapters(book)
            last = len(pieces) - 1
            size = len(pieces[last])
            while last > 1 and size + len(pieces[last - 1]) <= part * len(book):
                last -= 1
                size += len(pieces[last])
            train.append("".join(pieces[:last]))
            held_out.append("".join(pieces[last:]))
    return "".join(train), "".join(held_out)


def toml(recipe):
    tables = [k for k, v in recipe.items() if isinstance(v, dict)]
    lines = [f"{k} = {json.dumps(v)}" for k, v in recipe.items() if k not in tables]
    for table in tables:
        lines += [f"[{table}]"] + [f"{k} = {json.dumps(v)}" for k, v in recipe[table].items()]
    return "\n".join(lines) + "\n"


def mean_gate(folder):
    """Mean over heads of sigmoid(bias): the weight of the global pass where q says nothing. None without gates."""
    total = []
    for file in folder.glob("model*.safetensors"):
        with open(file, "rb") as f:
            (size,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(size))
            for name, at in header.items():
                if name.startswith("model.gate_projections.") and name.endswith(".bias") and at["dtype"] == "F32":
                    f.seek(8 + size + at["data_offsets"][0])
                    count = math.prod(at["shape"])
                    total += [1 / (1 + math.exp(-b)) for b in struct.unpack(f"<{count}f", f.read(4 * count))]
    return statistics.mean(total) if total else None


class Experiment:
    def __init__(self, args):
        self.args, self.work = args, args.work
        # Seeds that run side by side make what is the same for all of them once.
        self.shared = threading.Lock()
        self.train_text, self.held_out = self.work / "train.txt", self.work / "held-out.txt"

    def loopc(self, *words):
        """Standard output of the binary; it and its progress are seen on standard error."""
        words = [str(w) for w in [self.args.loopc, *words]]
        print("+", " ".join(words), file=sys.stderr, flush=True)
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
            try:
                said = child.stdout.read()
            except KeyboardInterrupt:
                # It goes to the whole process group: the binary saves what it has and ends.
                said = child.stdout.read()
        if child.returncode:
            sys.exit(f"experiments.py: `{words[1]}` failed (exit {child.returncode}); what is done is kept, run again to go on")
        return said

    def prepare(self):
        """The split as files. What is in WORK from other settings is refused."""
        train, held_out = split(self.args.text, self.args.held_out)
        # All that results in WORK depend on.
        names = ["base_steps", "steps", "tokens_per_step", "eval_tokens", "window", "gate_bias", "vocab", "shape", "pretrained", "dtype", "device"]
        settings = {name: getattr(self.args, name) for name in names} | {"recipes": RECIPES}
        settings = json.dumps(settings, indent=1, default=str)
        self.work.mkdir(parents=True, exist_ok=True)
        for path, text in [(self.train_text, train), (self.held_out, held_out), (self.work / "settings.json", settings)]:
            if path.exists() and path.read_text(encoding="utf-8") != text:
                sys.exit(f"experiments.py: {path} was made by other texts or settings; choose another WORK")
            path.write_text(text, encoding="utf-8")

    def train(self, start, out, recipe, steps, seed):
        """The checkpoint that `recipe` makes of `start`."""
        recipe = dict(RECIPES[recipe])
        tokens = self.args.tokens_per_step
        recipe |= {"batch": max(1, tokens // recipe["context"]), "steps": steps, "seed": seed, "warmup": steps // 20}
        recipe |= {"validate_every": 0, "checkpoint_every": self.args.checkpoint_every}
        # Tables come last in TOML.
        recipe = dict(sorted(recipe.items(), key=lambda item: isinstance(item[1], dict)))
        file, report = out.with_suffix(".toml"), out.with_suffix(".json")
        if not report.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(toml(recipe))
            resume = ["--resume"] if (out / "checkpoint").exists() else []
            common = ["--data", self.train_text, "--recipe", file, "-o", out, "--json", "--dtype", self.args.dtype, *self.where()]
            said = self.loopc("train", start, *common, *resume)
            if not json.loads(said)["finished"]:
                sys.exit("experiments.py: stopped; run again to go on")
            report.write_text(said)
        return out / "checkpoint"

    def where(self):
        threads = ["--threads", self.args.threads] if self.args.threads else []
        return ["--device", self.args.device, *threads]

    def evaluate(self, model, name, out):
        """Loss on the held-out chapters by context."""
        losses = {}
        for context in self.args.contexts:
            file = out / f"eval-{name}-{context}.json"
            if not file.exists():
                limit = ["--max-tokens", self.args.eval_tokens] if self.args.eval_tokens else []
                words = ["--text", self.held_out, "--context", context, "--json", *limit, *self.where()]
                said = self.loopc("eval", model, *words)
                out.mkdir(parents=True, exist_ok=True)
                file.write_text(said)
            losses[context] = json.loads(file.read_text())["loss"]
        return {"losses": losses, "gate": mean_gate(model)}

    def base(self, seed, out):
        if self.args.pretrained:
            return self.args.pretrained
        fresh = out / "fresh"
        if not fresh.exists():
            out.mkdir(parents=True, exist_ok=True)
            shape = self.args.shape.split() if self.args.shape else []
            self.loopc("init", fresh, "--text", self.train_text, "--vocab", self.args.vocab, "--seed", seed, *shape)
        return self.train(fresh, out / "base", "base", self.args.base_steps, seed)

    def seed(self, seed):
        """Results by name, of one seed."""
        args, out = self.args, self.work / f"seed-{seed}"
        base = self.base(seed, out)
        results = {}
        # What no seed has touched is the same for all of them.
        with self.shared if args.pretrained else contextlib.nullcontext():
            untrained = self.work / "pretrained" if args.pretrained else out
            untrained.mkdir(parents=True, exist_ok=True)
            results["base"] = self.evaluate(base, "base", untrained)
            for mode in args.modes:
                loop = untrained / mode
                if not loop.exists():
                    words = ["--mode", mode, "--window", args.window, "--gate-bias", args.gate_bias, "-o", loop]
                    self.loopc("retrofit", base, *words)
                results[mode] = self.evaluate(loop, mode, untrained)
        for recipe in args.base_recipes:
            trained = self.train(base, out / f"base-{recipe}", recipe, args.steps, seed)
            results[f"base {recipe}"] = self.evaluate(trained, f"base-{recipe}", out)
        for mode in args.modes:
            for recipe in ["run1", "run2"]:
                trained = self.train(untrained / mode, out / f"{mode}-{recipe}", recipe, args.steps, seed)
                results[f"{mode} {recipe}"] = self.evaluate(trained, f"{mode}-{recipe}", out)
        return results


def spread(values, form="{:.4f}"):
    """Mean, and from least to most where there is more than one."""
    text = form.format(statistics.mean(values))
    if len(values) > 1:
        text += f" ({form.format(min(values))} to {form.format(max(values))})"
    return text


WHAT = {
    "base": "base, untouched",
    "base run2": "base, norms trained (Run 2)",
    "base all": "base, all trained for as long",
    "run1": "gates (Run 1)",
    "run2": "gates and norms (Run 2)",
}


def what(name):
    mode, _, recipe = name.partition(" ")
    if name in WHAT:
        return WHAT[name]
    return f"`{mode}`, {WHAT[recipe]}" if recipe else f"`{mode}`, retrofit, untrained"


def tables(args, by_seed):
    """Differences are taken seed by seed: what seeds have in common does not count as spread."""
    names = ["base", *(f"base {r}" for r in args.base_recipes), *(m + r for m in args.modes for r in ["", " run1", " run2"])]
    for context in args.contexts:
        print(f"### Held-out loss at context {context}\n")
        print("| model | loss, nats a token | less than the base | less than the base with its norms trained | perplexity | mean gate |")
        print("|---|--:|--:|--:|--:|--:|")
        for name in names:
            rows = [r[name] for r in by_seed.values()]
            losses = [r["losses"][context] for r in rows]
            less = lambda than: spread([r[than]["losses"][context] - r[name]["losses"][context] for r in by_seed.values()], "{:+.4f}")
            gate = "" if rows[0]["gate"] is None else spread([r["gate"] for r in rows], "{:.3f}")
            shown = "" if name == "base" else less("base")
            # What gates add to norms that are trained alike.
            added = less("base run2") if name.endswith(" run2") and name != "base run2" and "base run2" in names else ""
            perplexity = math.exp(statistics.mean(losses))
            print(f"| {what(name)} | {spread(losses)} | {shown} | {added} | {perplexity:.2f} | {gate} |")
        print()


def settings(args):
    seeds = ", ".join(map(str, args.seeds))
    base = "a pretrained base" if args.pretrained else f"a base of {args.base_steps} steps from scratch"
    print(f"Seeds {seeds}; {base}; every other training {args.steps} steps of {args.tokens_per_step} tokens in {args.dtype} on {args.device};")
    print(f"evaluated in f32; window {args.window}; gates start at sigmoid({args.gate_bias:g}). Means over seeds, in parentheses the least and the most. In `less than`, above 0 is better.\n")


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: [int(n) for n in text.split(",")]
    p.add_argument("work", type=pathlib.Path)
    p.add_argument("--text", type=pathlib.Path, nargs="+", required=True)
    p.add_argument("--loopc", default="target/release/loopc")
    p.add_argument("--seeds", type=numbers, default=[1, 2, 3])
    p.add_argument("--modes", type=lambda t: t.split(","), default=MODES)
    p.add_argument("--base-recipes", type=lambda t: [r for r in t.split(",") if r], help="controls: run2, all [default: both, run2 with --pretrained]")
    p.add_argument("--base-steps", type=int, default=2000)
    p.add_argument("--steps", type=int, default=300, help="of each training after the base's")
    p.add_argument("--tokens-per-step", type=int, default=4096)
    p.add_argument("--checkpoint-every", type=int, default=100)
    p.add_argument("--contexts", type=numbers, default=[512, 1024], help="to evaluate at")
    p.add_argument("--eval-tokens", type=int, help="of the held-out text at most")
    p.add_argument("--held-out", type=float, default=0.05, help="part of each book")
    p.add_argument("--window", type=int, default=64)
    p.add_argument("--gate-bias", type=float, default=4.0)
    p.add_argument("--vocab", type=int, default=2048)
    p.add_argument("--shape", help="options of `loopc init`, in one string")
    p.add_argument("--pretrained", type=pathlib.Path, help="a folder to start from instead of a base from scratch")
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="of training; evaluations are in f32")
    p.add_argument("--threads", type=int)
    p.add_argument("--device", default="cpu", help="where `loopc` runs")
    p.add_argument("--at-once", type=int, default=1, help="seeds side by side")
    args = p.parse_args()
    if args.base_recipes is None:
        args.base_recipes = ["run2"] if args.pretrained else ["run2", "all"]
    longest = max(r["context"] for r in RECIPES.values())
    if args.tokens_per_step < 1 or args.tokens_per_step % longest:
        p.error(f"--tokens-per-step {args.tokens_per_step}: a step has whole windows of every recipe, so a multiple of {longest}")
    if shutil.which(args.loopc) is None:
        p.error(f"--loopc {args.loopc}: no such program; build it with `cargo build --release`")
    for path in args.text:
        if not path.is_file():
            p.error(f"--text {path}: no such file")
    return args


def main():
    args = arguments()
    experiment = Experiment(args)
    experiment.prepare()
    with ThreadPoolExecutor(args.at_once) as pool:
        by_seed = dict(zip(args.seeds, pool.map(experiment.seed, args.seeds)))
    (args.work / "results.json").write_text(json.dumps(by_seed, indent=1))
    settings(args)
    tables(args, by_seed)


if __name__ == "__main__":
    main()
