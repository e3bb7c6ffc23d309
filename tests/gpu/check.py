"""Kernels on the GPU against the plan's interpreter: `check.py DIR...`, each made by compiler/examples/cases.rs.

Every argument stands between guards; written ones are checked element by element, all variants of a kernel that take its sizes.
"""
import json
import pathlib
import sys

import torch

from launch import SYMBOLS, Module, fits

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i32": torch.int32, "i1": torch.uint8}
GUARD = 256


def tensor(data, at, n, dtype):
    width = torch.empty(0, dtype=TYPES[dtype]).element_size()
    return torch.frombuffer(bytearray(data[at : at + n * width]), dtype=TYPES[dtype]) if n else torch.empty(0, dtype=TYPES[dtype])


def run(module, case, data, variant):
    held, views = [], []
    for a in case["args"]:
        before = tensor(data, a["before"], a["len"], a["dtype"])
        whole = torch.full((a["len"] + 2 * GUARD,), 77, dtype=TYPES[a["dtype"]], device="cuda")
        whole[GUARD : GUARD + a["len"]] = before.cuda()
        held.append(whole)
        views.append(whole[GUARD : GUARD + a["len"]])
    module.run(case["kernel"], case["sizes"], views, variant)
    torch.cuda.synchronize()
    worst = 0.0
    for i, (a, whole) in enumerate(zip(case["args"], held)):
        if not (bool((whole[:GUARD] == 77).all()) and bool((whole[GUARD + a["len"] :] == 77).all())):
            return f"argument {i}: wrote outside"
        mine = whole[GUARD : GUARD + a["len"]].cpu().double()
        wanted = tensor(data, a["before"] if a["after"] is None else a["after"], a["len"], a["dtype"]).double()
        bf16 = any(b["dtype"] == "bf16" for b in case["args"])
        scale = max(1.0, float(torch.where(torch.isfinite(wanted), wanted, 0).abs().max())) if a["len"] else 1.0
        off = (mine - wanted).abs()
        off[torch.isnan(wanted) | (mine == wanted)] = 0  # never written, or equal infinities
        bad = off.max() / scale if a["len"] else torch.tensor(0.0)
        if torch.isnan(off).any() or bad > (2e-2 if bf16 else 2e-5):
            at = int(off.nan_to_num(nan=1e30).argmax())
            return f"argument {i} element {at} of {a['len']}: {mine[at]:.6g}, wants {wanted[at]:.6g}"
        worst = max(worst, float(bad))
    return worst


failed = total = 0
for folder in map(pathlib.Path, sys.argv[1:]):
    module = Module(folder)
    data = (folder / "cases.bin").read_bytes()
    for case in json.loads((folder / "cases.json").read_text()):
        variants = module.kernels[case["kernel"]]["gpu"]["variants"]
        sizes = {**{s: 1 for s in SYMBOLS}, **case["sizes"]}
        for v, spec in enumerate(variants):
            if not fits(spec, sizes):
                continue
            total += 1
            try:
                result = run(module, case, data, v)
            except Exception as e:  # a launch that fails leaves the context broken: nothing after it would mean anything
                print(f"{folder.name} {case['kernel']} variant {v}: {e}")
                print(f"stopped; {failed + 1} of {total} failed so far")
                sys.exit(1)
            if isinstance(result, str):
                failed += 1
                print(f"{folder.name} {case['kernel']} variant {v}: {result}")
print(f"{total} checked, {failed} failed")
sys.exit(1 if failed else 0)
