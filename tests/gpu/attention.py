"""Attention kernels on the GPU: checked against float64 in PyTorch, then timed beside PyTorch's own.

    attention.py kernels OUT.json [N]      the kernels, for compiler/examples/kernels.rs (no GPU, no torch); N: random ones instead, so many, and the seed
    attention.py check DIR [N]             DIR as kernels.rs wrote it; many sizes, poisoned outputs, guards; N as it was: each random one at 45 sizes
    attention.py time DIR                  16,384 tokens, Qwen3-0.6B's heads: ours, cuDNN, FlexAttention
"""
import json
import pathlib
import sys

GUARD = 1024


def size(*factors):
    coef, syms = 1, []
    for f in factors:
        if isinstance(f, str):
            syms.append(f)
        else:
            coef *= f
    return {"coef": coef, "syms": sorted(syms)} if coef else {"coef": 0}


def access(arg, strides, offset=0, indirect=None):
    return {"arg": arg, "offset": size(offset), "strides": strides, "indirect": indirect}


class Case:
    """A sweep as plans have it: q [B, kv heads, groups, T, D], k the same without groups, v beside q and k in rows of a projection or,
    with caches, [B, kv heads, C, D] both. kind: all, window, layer, far, two (own keys and values for the window)."""

    def __init__(self, name, kind, heads=(2, 2), d=128, window=64, dtype="bf16", tokens=True, cache=False, gate=True, lse=False, out="bf16", keys=None):
        self.__dict__.update(locals())
        del self.__dict__["self"]

    def args(self):
        d, t = self.dtype, {"bf16": "bf16", "f32": "f32"}
        names = [("q", d), ("k", d), ("v", d), ("k2", d), ("v2", d), ("w", "f32"), ("b", "f32"), ("start", "i32"), ("out", self.out), ("lse0", "f32"), ("lse1", "f32")]
        return [(n, x, n in ("out", "lse0", "lse1")) for n, x in names]

    def segments(self):
        w = self.window
        return {
            "all": [(0, None, None, 0)],
            "window": [(0, w, None, 0)],
            "layer": [(0, w, None, 0), (w, None, 0, 0)],
            "two": [(0, None, None, 0), (0, w, None, 1)],
            "far": [(w, None, None, 0)],
            "fork": [(0, w, None, 0), (w, 2 * w, 0, 0), (w, None, 0, 0)],
        }[self.kind]

    def kernel(self):
        kv, g = self.heads
        d = self.d
        t = ["T"] if self.tokens else []
        rank = 3 + len(t)
        width = (kv * g + 2 * kv) * d
        # q, by (b, kv, g, t, column)
        rows = t or [1]
        q = [size(kv * g * d, *rows), size(g * d, *rows), size(d, *rows)] + ([size(d)] if t else []) + [size(1)]
        out = [size(kv * g * d, *rows), size(g * d), size(d)] + ([size(kv * g * d)] if t else []) + [size(1)]
        stat = [size(kv * g, *rows), size(g, *rows), size(1, *rows)] + ([size(1)] if t else []) + [size(0)]
        zero = [size(0)] * rank
        n = size("S") if self.cache else size("T")
        if self.cache:
            k = v = {"offset": size(0), "strides": [size(kv * d, "C"), size(d, "C"), size(d)]}
        else:
            k = {"offset": size(0), "strides": [size(kv * d, "T"), size(d, "T"), size(d)]}
            v = {"offset": size((kv * g + kv) * d), "strides": [size(width, "T"), size(d), size(width)]}
        import struct
        bits = lambda x: struct.unpack("<I", struct.pack("<f", x))[0]
        scale = [bits(d ** -0.5), bits(0.8 * d ** -0.5)]
        segments = [
            {"k": {"arg": 1 + 2 * s, **k}, "v": {"arg": 2 + 2 * s, **v}, "scale": scale[s], "keys": n, "near": near, "far": far, "after": after}
            for near, far, after, s in self.segments()
        ]
        if self.keys:
            segments[-1]["keys"] = size(self.keys)
        last = len(segments) - 1
        exprs, stages = [], []

        def expr(x):
            exprs.append(x)
            return len(exprs) - 1

        start = expr({"Load": access(7, [size(1)] + [size(0)] * rank)}) if self.cache else None
        value = expr({"Swept": last})
        if self.gate:
            x = expr({"Load": access(0, q)})
            w = expr({"Load": access(5, [size(0), size(g * d), size(d)] + zero[3:] + [size(1)])})
            b = expr({"Load": access(6, [size(0), size(g), size(1)] + zero[3:] + [size(0)])})
            m = expr({"Binary": ["mul", x, w]})
            stages.append({"Reduce": {"op": "sum", "value": m}})
            r = expr({"Reduced": 0})
            s = expr({"Binary": ["add", r, b]})
            gate = expr({"Unary": ["sigmoid", s]})
            one = expr({"Float": bits(1.0)})
            rest = expr({"Binary": ["sub", one, gate]})
            first = expr({"Swept": 0})
            a = expr({"Binary": ["mul", gate, value]})
            c = expr({"Binary": ["mul", rest, first]})
            value = expr({"Binary": ["add", a, c]})
        stages.append({"Store": {"to": access(8, out), "value": value, "when": None}})
        if self.lse:
            for i, p in enumerate((0, last)):
                v = expr({"Lse": p})
                stages.append({"Store": {"to": access(9 + i, stat), "value": v, "when": None}})
        sweep = {"batch": 2, "q": access(0, q), "depth": d, "tokens": self.tokens, "start": start, "segments": segments}
        return {
            "name": self.name,
            "args": [{"dtype": t, "written": w} for _, t, w in self.args()],
            "outer": [size("B"), size(kv), size(g)] + [size(x) for x in t],
            "cols": size(d), "contraction": None, "sweep": sweep, "exprs": exprs, "stages": stages,
        }

    def tensors(self, b, t, s, c):
        import torch
        kv, g, d = *self.heads, self.d
        types = {"bf16": torch.bfloat16, "f32": torch.float32, "i32": torch.int32}
        t = t if self.tokens else 1
        rows = b * kv * g * t
        matrix = b * kv * c * d if self.cache else b * t * (kv * g + 2 * kv) * d
        n = {"q": rows * d, "k": matrix, "v": matrix, "k2": matrix, "v2": matrix, "w": kv * g * d, "b": kv * g, "start": b, "out": rows * d, "lse0": rows, "lse1": rows}
        held = {}
        for name, dtype, written in self.args():
            whole = torch.full((n[name] + 2 * GUARD,), 12345 if dtype == "i32" else float("nan"), dtype=types[dtype], device="cuda")
            x = whole[GUARD : GUARD + n[name]]
            if not written and dtype != "i32":
                x.copy_(torch.randn(n[name], device="cuda") * (0.3 if name in "wb" else 1))
            held[name] = (whole, x)
        return held

    def reference(self, x, b, t, s, c, start, only=None):
        """float64: out, lse of segment 0, lse of the last; `only` picks tokens."""
        import torch
        kv, g, d = *self.heads, self.d
        t = t if self.tokens else 1
        q = x["q"].view(b, kv, g, t, d)
        position = torch.arange(t, device="cuda")[None, :] + start[:, None]
        if only is not None:
            q, position = q[:, :, :, only], position[:, only]
        q = q.double()
        results, lses, state = [], [], []
        segments = self.kernel()["sweep"]["segments"]
        for p, (near, far, after, stream) in enumerate(self.segments()):
            chain, at = [p], after
            while at is not None:
                chain.append(at)
                at = self.segments()[at][2]
            k, v = (x[n + ("2" if stream else "")] for n in "kv")
            if self.cache:
                k, v = (y.view(b, kv, c, d)[:, :, :s] for y in (k, v))
            else:
                k = k[: b * kv * t * d].view(b, kv, t, d)
                v = v.view(b, t, -1, d)[:, :, kv * g + kv :].transpose(1, 2)
            n = k.shape[2]
            if self.keys and p == len(segments) - 1:
                n = min(n, self.keys)
                k, v = k[:, :, :n], v[:, :, :n]
            distance = position[:, :, None] - torch.arange(n, device="cuda")[None, None, :]
            seen = torch.zeros_like(distance, dtype=torch.bool)
            for c_ in chain:
                lo, hi = self.segments()[c_][:2]
                seen |= (distance >= lo) & (distance < (1 << 40 if hi is None else hi))
            out, lse = [], []
            scale = (0.8 if stream else 1.0) * d ** -0.5
            for h in range(kv):
                score = torch.einsum("bgtd,bjd->bgtj", q[:, h], k[:, h].double()) * scale
                score = score.masked_fill(~seen[:, None], float("-inf"))
                l = torch.logsumexp(score, -1)
                weight = torch.exp(score - l.clamp(min=-1e300)[..., None])
                out.append(torch.einsum("bgtj,bjd->bgtd", weight, torch.nan_to_num(v[:, h].double())))
                lse.append(l)
            results.append(torch.stack(out, 1))
            lses.append(torch.stack(lse, 1).clamp(min=-1e30))
        y = results[-1]
        if self.gate:
            w, bias = x["w"].double().view(1, kv, g, 1, d), x["b"].double().view(1, kv, g, 1)
            gate = torch.sigmoid((q * w).sum(-1) + bias)[..., None]
            y = gate * results[-1] + (1 - gate) * results[0]
        return y, lses[0], lses[-1]

    def check(self, module, b, t, s=None, c=None, start=None, variant=None, only=None):
        import torch
        torch.manual_seed(1)
        kv, g, d = *self.heads, self.d
        s = s or t
        c = c or s
        held = self.tensors(b, t, s, c)
        x = {n: v for n, (_, v) in held.items()}
        begin = torch.tensor((start or [0] * b)[:b], device="cuda", dtype=torch.int64)
        x["start"].copy_(begin)
        if self.cache:  # what lies behind the last token is not there
            for n in ("k", "v", "k2", "v2"):
                last = begin + (t if self.tokens else 1)
                x[n].view(b, kv, c, d).masked_fill_((torch.arange(c, device="cuda")[None] >= last[:, None])[:, None, :, None], 3e4)
        sizes = {"B": b, "T": t, "S": s, "C": c}
        module.run(self.name, sizes, [x[n] for n, _, _ in self.args()], variant)
        torch.cuda.synchronize()
        wanted = self.reference(x, b, t, s, c, begin, only)
        tt = t if self.tokens else 1
        found = [x["out"].view(b, tt, kv, g, d).permute(0, 2, 3, 1, 4)]
        if self.lse:
            found += [x["lse0"].view(b, kv, g, tt), x["lse1"].view(b, kv, g, tt)]
        if only is not None:
            found = [f[:, :, :, only] for f in found]
        worst = 0
        for name, y, z in zip(("out", "lse of 0", "lse of the last"), found, wanted):
            off = (y.double().clamp(min=-1e6) - z.clamp(min=-1e6)).abs()
            limit = (1e-5 if self.dtype == "f32" else 2e-2 if name == "out" else 2e-3) * max(1.0, 1 if name == "out" else 5)
            bad = off.max().item()
            if not bad <= limit:
                at = torch.nan_to_num(off, nan=1e30).argmax().item()
                at = [int(i) for i in torch.unravel_index(torch.tensor(at), off.shape)]
                n = int((~(off <= limit)).sum())
                return f"{self.name} {sizes} start {begin.tolist()} variant {variant}: {name} at {at} is {y[tuple(at)].item():.5g}, wants {z[tuple(at)].item():.5g}; {n} of {off.numel()} wrong"
            if name == "out":
                worst = max(worst, bad)
        for n, (whole, _) in held.items():
            around = torch.cat([whole[:GUARD], whole[-GUARD:]])
            if not bool((around == 12345).all() if whole.dtype == torch.int32 else around.isnan().all()):
                return f"{self.name} {sizes}: wrote around {n}"
        return worst


def cases():
    yield Case("all128", "all", gate=False, lse=True)
    yield Case("layer128", "layer", lse=True)
    yield Case("window128", "window", gate=False)
    yield Case("two128", "two", lse=True)
    for w in (1, 17, 100, 128, 129, 200, 512):
        yield Case(f"layer128w{w}", "layer", window=w)
    yield Case("layer128odd", "layer", heads=(2, 3))
    yield Case("layer128one", "layer", heads=(3, 1), window=100)
    yield Case("all128one", "all", heads=(3, 1), gate=False)
    yield Case("layer128four", "layer", heads=(2, 4))
    yield Case("layer64", "layer", d=64)
    yield Case("layer64odd", "layer", d=64, heads=(3, 3), window=80)
    yield Case("two64", "two", d=64)
    yield Case("layer128cached", "layer", cache=True, lse=True)
    yield Case("two128cached", "two", cache=True, window=100)
    yield Case("f32", "layer", dtype="f32", out="f32", lse=True)
    yield Case("layer32", "layer", d=32, heads=(2, 3))
    yield Case("far", "far", gate=False, lse=True)
    yield Case("fork", "fork")
    for name, kind, d, heads in (("few128", "layer", 128, (8, 2)), ("few64", "layer", 64, (3, 3)), ("few32", "layer", 32, (2, 3)), ("fewtwo", "two", 128, (2, 2)),
                                 ("few80", "layer", 80, (2, 2)), ("fewone", "all", 128, (4, 1)), ("fewmany", "layer", 128, (2, 9))):
        yield Case(name, kind, d=d, heads=heads, tokens=False, cache=True, gate=kind != "all", lse=True)
    yield Case("fewring", "two", tokens=False, cache=True, keys=64, window=10**9)
    yield Case("fewf32", "layer", dtype="f32", out="f32", tokens=False, cache=True)


def random_cases(n):
    """Kernels that nobody chose; the same n are the same kernels."""
    import random
    draw = random.Random(n)
    for i in range(n):
        kind = draw.choice(["all", "window", "layer", "layer", "two", "far", "fork"])
        tokens = draw.random() < 0.75
        yield Case(f"random{i}", kind, heads=(draw.randint(1, 4), draw.randint(1, 5)), d=draw.choice([32, 64, 64, 80, 128, 128, 128]), window=draw.randint(1, 700),
                   tokens=tokens, cache=not tokens or draw.random() < 0.3, gate=kind in ("layer", "two", "fork") and draw.random() < 0.8, lse=draw.random() < 0.5)


def random_places(case, n=45):
    import random
    draw = random.Random(case.name)
    near = lambda most: max(1, min(most, draw.choice([64, 128, 256]) * draw.randint(0, 8) + draw.randint(-2, 2))) if draw.random() < 0.5 else draw.randint(1, most)
    for _ in range(n):
        b, s = draw.randint(1, 4), near(1200)
        if not case.cache:
            yield b, s, None, None, None
            continue
        t = min(near(400), s) if case.tokens else 1
        # What a sequence has seen before; all keys are in the first s.
        starts = [draw.randint(0, s - t) for _ in range(b)]
        yield b, t, s, s + draw.randint(0, 70), [s - t, *starts[1:]]


def models():
    """What is timed: Qwen3-0.6B's heads."""
    yield Case("qwen", "all", heads=(8, 2), gate=False)
    yield Case("qwen_loop64", "layer", heads=(8, 2))
    yield Case("qwen_loop512", "layer", heads=(8, 2), window=512)
    yield Case("qwen_two64", "two", heads=(8, 2))
    yield Case("qwen_loop64_nogate", "layer", heads=(8, 2), gate=False)
    yield Case("half", "all", heads=(8, 2), d=64, gate=False)
    yield Case("half_loop64", "layer", heads=(8, 2), d=64)
    yield Case("qwen_few", "layer", heads=(8, 2), tokens=False, cache=True)


def check(folder, randoms=0):
    from launch import Module
    module = Module(folder)
    if randoms and len(module.kernels) != randoms:
        sys.exit(f"{folder} has {len(module.kernels)} kernels, and N is {randoms}: it is their number and their seed")
    failed = total = 0
    for case in random_cases(randoms) if randoms else [*cases(), *models()]:
        if case.name not in module.kernels:
            continue
        if randoms:
            places = list(random_places(case))
        elif not case.tokens:
            places = [(b, 1, s, s + 64, st) for b, s, st in (
                (1, 1, [0]), (2, 256, [0, 5]), (3, 256, [63, 64, 65]), (2, 512, [255, 256]), (4, 1024, [0, 17, 600, 1000]), (1, 4096, [4000]), (8, 768, [1, 127, 128, 129, 200, 511, 512, 700]))]
        elif case.cache:
            places = [(1, 1, 1, 1, [0]), (2, 5, 300, 320, [3, 200]), (2, 64, 64, 70, [0, 0]), (1, 200, 456, 500, [256]), (2, 130, 700, 700, [1, 511]), (1, 65, 1000, 1000, [777])]
        else:
            places = [(2, t, None, None, None) for t in (1, 2, 17, 63, 64, 65, 100, 127, 128, 129, 191, 192, 193, 256, 257, 320, 500, 640, 1000)]
        variants = module.kernels[case.name]["gpu"]["variants"]
        for v in range(len(variants)):
            for b, t, s, c, st in places:
                sizes = {"B": b, "T": t, "S": s or t, "C": c or t}
                limit = variants[v].get("at_most")
                from launch import size as value
                if limit and value(limit[0], sizes) > limit[1] or any(value(x, sizes) % n for x, n in variants[v].get("multiples", [])):
                    continue
                total += 1
                result = case.check(module, b, t, s, c, st, v)
                if isinstance(result, str):
                    failed += 1
                    print(result)
                    if failed > 30:
                        return 1
    print(f"{total} checked, {failed} failed")
    return 1 if failed else 0


def measure(folder, names=None):
    """Ours beside PyTorch's plain causal attention; the same tokens in all."""
    import torch
    from launch import Module, time
    from torch.nn.attention import SDPBackend, sdpa_kernel
    modules = [Module(f) for f in folder.split(",")]
    print(torch.cuda.get_device_name(), "microseconds (TFLOP/s of plain causal, ratio to cuDNN)")
    for d in (128, 64):
        peers = {}
        for t in (1024, 4096, 16384):
            b = 16384 // t
            flops = 4 * b * 16 * t * t / 2 * d
            q, k, v = (torch.randn(b, h, t, d, device="cuda", dtype=torch.bfloat16) for h in (16, 8, 8))
            row = [f"d {d} T {t:5}:"]

            def show(name, s, base=None):
                row.append(f"{name} {s * 1e6:.0f} ({flops / s * 1e-12:.0f}" + (f", {s / base:.3f})" if base else ")"))

            base = None
            for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash2", SDPBackend.FLASH_ATTENTION)):
                with sdpa_kernel(backend):
                    f = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                    seconds = time(f)
                base = base or seconds
                show(name, seconds)
            for m, module in enumerate(modules):
                for case in models():
                    if case.d != d or not case.tokens or case.name not in module.kernels:
                        continue
                    held = case.tensors(b, t, t, t)
                    x = [held[n][1] for n, _, _ in case.args()]
                    held["start"][1].zero_()
                    show(case.name + (f"/{m}" if len(modules) > 1 else ""), time(lambda: module.run(case.name, {"B": b, "T": t, "S": t, "C": t}, x)), base)
            print(*row, flush=True)
    for name in ("qwen_few",):
        case = next(c for c in models() if c.name == name)
        for module in modules:
            if name not in module.kernels:
                continue
            row = [f"{name}:"]
            for b, s in ((1, 512), (1, 4096), (8, 512), (8, 4096), (64, 1024), (64, 4096)):
                copies = [case.tensors(b, 1, s, s) for _ in range(max(2, min(16, 400_000_000 // (b * s * 4096))))]
                for held in copies:
                    held["start"][1].fill_(s - 1)
                lists = [[held[n][1] for n, _, _ in case.args()] for held in copies]
                at = [0]

                def step():
                    at[0] += 1
                    module.run(name, {"B": b, "T": 1, "S": s, "C": s}, lists[at[0] % len(lists)])

                seconds = time(step, inner=16)
                row.append(f"B {b} S {s}: {seconds * 1e6:.1f} us, {b * s * 4096 / seconds * 1e-12:.2f} TB/s;")
                del copies, lists
            print(*row, flush=True)
    return 0


def main():
    if sys.argv[1] == "time":
        return measure(sys.argv[2])
    if sys.argv[1] == "kernels":
        chosen = random_cases(int(sys.argv[3])) if len(sys.argv) > 3 else [*cases(), *models()]
        pathlib.Path(sys.argv[2]).write_text(json.dumps([c.kernel() for c in chosen]))
        return 0
    if sys.argv[1] == "check":
        return check(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)


sys.exit(main())
