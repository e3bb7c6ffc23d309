"""The backward of attention on the GPU: checked against float64 in PyTorch, then timed beside PyTorch's own.

    attention_gradient.py kernels OUT.json [N] the kernels, for compiler/examples/kernels.rs (no GPU, no torch); N: random ones instead
    attention_gradient.py check DIR [N]        DIR as kernels.rs wrote it; poisoned outputs, guards; three times, to the bit
    attention_gradient.py time DIR             Qwen3-0.6B's heads, 16,384 tokens: ours and cuDNN's
"""
import json
import pathlib
import struct
import sys

GUARD = 1024


def size(*factors):
    n = 1
    for f in factors:
        n *= f
    return {"coef": n}


class Case:
    """q, d [B, kv, groups, T, D], k the same without groups, v [B, T, kv, D]: as training plans have them. Ranges: (near, far)."""

    def __init__(self, b, t, heads=(2, 2), d=128, ranges=((64, None), (0, 64)), dtype="bf16"):
        self.b, self.t, self.heads, self.d, self.ranges, self.dtype = b, t, heads, d, ranges, dtype
        text = "_".join(f"{n}to{'end' if f is None else f}" for n, f in ranges)
        self.name = f"gradient_b{b}_t{t}_h{heads[0]}x{heads[1]}_d{d}_{text}"

    def args(self):
        kind = self.dtype
        each = [(f"{n}{i}", kind if n == "d" else "f32", False) for i in range(len(self.ranges)) for n in ("d", "z", "lse")]
        return each + [(n, kind, False) for n in "qkv"] + [(n, "f32", True) for n in ("dq", "dk", "dv")]

    def kernel(self):
        kv, g = self.heads
        t, d = self.t, self.d
        names = [n for n, _, _ in self.args()]
        rows = lambda name, *strides: {"arg": names.index(name), "offset": size(0), "strides": [size(s) for s in strides]}
        by_row = lambda name, w: rows(name, kv * g * t * w, g * t * w, t * w, w)
        ranges = [
            {"near": near, "far": far, "d": by_row(f"d{i}", d), "z": by_row(f"z{i}", 1), "lse": by_row(f"lse{i}", 1)}
            for i, (near, far) in enumerate(self.ranges)
        ]
        scale = struct.unpack("<I", struct.pack("<f", d**-0.5))[0]
        gradient = {
            "groups": g, "tokens": size(t), "keys": size(t), "depth": d, "scale": scale, "q": by_row("q", d),
            "k": rows("k", kv * t * d, t * d, d), "v": rows("v", kv * t * d, d, kv * d), "ranges": ranges,
            "dq": by_row("dq", d), "dk": rows("dk", kv * t * d, t * d, d), "dv": rows("dv", kv * t * d, t * d, d),
        }
        return {
            "name": self.name, "args": [{"dtype": t, "written": w} for _, t, w in self.args()],
            "outer": [size(self.b), size(kv)], "cols": size(d), "contraction": None, "sweep_gradient": gradient,
            "exprs": [], "stages": [],
        }

    def tensors(self):
        """Random inputs with the lse that belongs to them; outputs are poisoned."""
        import torch

        torch.manual_seed(self.t + self.d)
        kv, g = self.heads
        b, t, d = self.b, self.t, self.d
        shapes = {"q": (b, kv, g, t, d), "k": (b, kv, t, d), "v": (b, t, kv, d), "dq": (b, kv, g, t, d), "dk": (b, kv, t, d), "dv": (b, kv, t, d)}
        types = {"bf16": torch.bfloat16, "f32": torch.float32}
        held = {}
        for name, dtype, written in self.args():
            kind = name.rstrip("0123456789")
            shape = shapes.get(kind, (b, kv, g, t, d) if kind == "d" else (b, kv, g, t))
            n = torch.Size(shape).numel()
            whole = torch.full((n + 2 * GUARD,), float("nan"), dtype=types[dtype], device="cuda")
            x = whole[GUARD : GUARD + n].view(shape)
            if not written and kind != "lse":
                x.copy_(torch.randn(shape, device="cuda"))
            held[name] = (whole, x)
        if b * kv * g * t * t <= 1 << 27:
            s = torch.einsum("bhgtd,bhjd->bhgtj", held["q"][1].double(), held["k"][1].double()) * d**-0.5
            for i in range(len(self.ranges)):
                lse = torch.logsumexp(s.masked_fill(~self.seen(i, exact=False), float("-inf")), -1)
                held[f"lse{i}"][1].copy_(lse.clamp(min=-1e30))
        else:
            for i in range(len(self.ranges)):
                held[f"lse{i}"][1].fill_(8.0)
        return held

    def seen(self, i, exact=True):
        import torch

        at = torch.arange(self.t, device="cuda")
        distance = at[:, None] - at[None, :]
        near, far = self.ranges[i]
        # A range's mass is that of all that its measure has seen: what is nearer too.
        return (distance >= (near if exact else 0)) & (distance < (1 << 40 if far is None else far))

    def reference(self, x):
        import torch

        x = {n: v.double() for n, v in x.items()}
        v = x["v"].transpose(1, 2)
        s = torch.einsum("bhgtd,bhjd->bhgtj", x["q"], x["k"]) * self.d**-0.5
        dx, dv = 0, 0
        for i in range(len(self.ranges)):
            p = torch.exp(s - x[f"lse{i}"][..., None]).masked_fill(~self.seen(i), 0)
            dp = torch.einsum("bhgtd,bhjd->bhgtj", x[f"d{i}"], v) + x[f"z{i}"][..., None]
            dx = dx + self.d**-0.5 * p * dp
            dv = dv + torch.einsum("bhgtj,bhgtd->bhjd", p, x[f"d{i}"])
        return {"dq": torch.einsum("bhgtj,bhjd->bhgtd", dx, x["k"]), "dk": torch.einsum("bhgtj,bhgtd->bhjd", dx, x["q"]), "dv": dv}

    def run(self, module, held):
        module.run(self.name, {}, [held[n][1] for n, _, _ in self.args()])

    def check(self, module):
        import torch

        held = self.tensors()
        outputs = []
        for _ in range(3):
            for n in ("dq", "dk", "dv"):
                held[n][1].fill_(float("nan"))
            self.run(module, held)
            torch.cuda.synchronize()
            outputs.append({n: held[n][1].clone() for n in ("dq", "dk", "dv")})
        wanted = self.reference({n: x for n, (_, x) in held.items()})
        worst, bad = {}, []
        for n in ("dq", "dk", "dv"):
            whole = held[n][0]
            if not (whole[:GUARD].isnan().all() and whole[-GUARD:].isnan().all()):
                bad.append(f"{n}: wrote outside")
            if not all(torch.equal(outputs[0][n].view(torch.int32), o[n].view(torch.int32)) for o in outputs[1:]):
                bad.append(f"{n}: other bits each time")
            off = (outputs[0][n].double() - wanted[n]).abs()
            # Where no key is seen all is zero.
            most = wanted[n].abs().max().clamp(min=1e-6)
            worst[n] = float(off.max() / most)
            if not worst[n] < 1.5e-2:
                where = torch.nonzero(~(off < 1.5e-2 * most))
                bad.append(f"{n}: {len(where)} of {off.numel()} wrong, first {where[0].tolist()} last {where[-1].tolist()}")
        return worst, bad


LAYER, PLAIN = ((64, None), (0, 64)), ((0, None),)
CHECKS = [
    Case(1, 64, (1, 1), 128, PLAIN), Case(1, 128, (1, 1), 128, PLAIN), Case(1, 128, (1, 2), 128, LAYER), Case(1, 256, (2, 2), 128, LAYER),
    Case(2, 512, (2, 2), 128, LAYER), Case(2, 200, (2, 2), 128, LAYER), Case(1, 1000, (3, 1), 128, LAYER),
    Case(1, 500, (2, 3), 128, ((0, 100), (100, 228), (228, None))), Case(1, 640, (2, 2), 128, ((0, 256),)), Case(1, 640, (2, 2), 128, ((32, 300), (0, 32))),
    Case(2, 1024, (8, 2), 128, LAYER), Case(1, 2048, (4, 2), 128, ((512, None), (0, 512))),
    Case(1, 64, (1, 1), 64, PLAIN), Case(2, 320, (2, 2), 64, LAYER), Case(1, 1000, (3, 2), 64, LAYER), Case(2, 1024, (8, 2), 64, PLAIN),
]


def random_cases(n):
    """Kernels that nobody chose; the same n are the same kernels."""
    import random
    draw = random.Random(n)
    for _ in range(n):
        w, t = draw.randint(1, 400), draw.choice([64, 128]) * draw.randint(0, 8) + draw.randint(-2, 2) if draw.random() < 0.5 else draw.randint(1, 900)
        ranges = draw.choice([((0, None),), ((0, w),), ((w, None), (0, w)), ((w, None), (0, w)), ((w, None),), ((0, w), (w, 2 * w), (2 * w, None))])
        yield Case(draw.randint(1, 3), max(1, t), (draw.randint(1, 4), draw.randint(1, 4)), draw.choice([64, 128, 128]), ranges)


HEADS = (8, 2)
TIMES = [
    Case(16384 // t, t, HEADS, 128, ranges)
    for t in (1024, 4096, 16384) for ranges in (PLAIN, LAYER, ((512, None), (0, 512)))
] + [Case(16384 // t, t, (8, 4), 64, ranges) for t in (4096,) for ranges in (PLAIN, LAYER)]


def cudnn(t, d, heads):
    """(forward, both) of plain causal attention by cuDNN, in seconds."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from launch import time

    kv, g = heads
    b = 16384 // t
    q, k, v = (torch.randn(b, n, t, d, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (kv * g, kv, kv))
    dy = torch.randn(b, kv * g, t, d, device="cuda", dtype=torch.bfloat16)

    def both():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return torch.autograd.grad(y, (q, k, v), dy)

    def forward():
        with torch.no_grad(), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return time(forward, 10, 5), time(both, 10, 5)


def main():
    if sys.argv[1] == "kernels":
        names, rows = set(), []
        for case in random_cases(int(sys.argv[3])) if len(sys.argv) > 3 else CHECKS + TIMES:
            if case.name not in names:
                names.add(case.name)
                rows.append(case.kernel())
        pathlib.Path(sys.argv[2]).write_text(json.dumps(rows))
        return
    import torch
    from launch import Module, time

    module = Module(sys.argv[2])
    print(torch.cuda.get_device_name())
    if sys.argv[1] == "check":
        failed, chosen = 0, list(random_cases(int(sys.argv[3]))) if len(sys.argv) > 3 else CHECKS
        if missing := {case.name for case in chosen} ^ set(module.kernels) if len(sys.argv) > 3 else {}:
            sys.exit(f"{sys.argv[2]} was made with another N: {len(missing)} kernels are not those of {sys.argv[3]}")
        for case in chosen:
            worst, bad = case.check(module)
            failed += bool(bad)
            print(case.name, " ".join(f"{n} {x:.1e}" for n, x in worst.items()), *bad, sep="  ", flush=True)
        print(f"{len(chosen)} checked, {failed} failed")
    else:
        peers = {}
        for case in TIMES:
            key = (case.t, case.d, case.heads)
            if key not in peers:
                try:
                    peers[key] = cudnn(*key)
                except Exception as e:
                    print("cuDNN:", str(e)[:200])
                    peers[key] = (float("nan"), float("nan"))
            forward, both = peers[key]
            held = case.tensors()
            mine = time(lambda: case.run(module, held), 10, 5)
            kv, g = case.heads
            work = 5 * case.b * kv * g * case.t**2 * case.d
            print(
                f"{case.name:48} {mine * 1e3:.3f} ms {work / mine * 1e-12:.0f} TFLOP/s; cuDNN backward {(both - forward) * 1e3:.3f} ms, both {both * 1e3:.3f}:"
                f" backward {mine / (both - forward):.3f} x, with its forward {(forward + mine) / both:.3f} x", flush=True)


main()
