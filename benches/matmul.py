#!/usr/bin/env python3
"""Our packed matmul against PyTorch's (oneDNN), alternating, both sides from one run.

    cargo bench -p compiler --bench matmul --no-run     # says where the executable is
    benches/matmul.py EXECUTABLE [--threads 2] [--rounds 5] [--dtype bf16]

For many rows: GFLOP/s and the ratio. For few rows: GB/s of weights read, against plain reading in the same run.
Prints one JSON object a shape; a ratio is of medians over rounds of each round's best call.
"""
import argparse
import json
import statistics
import subprocess
import time

import torch

MANY = [(512, 1024, 1024), (512, 1024, 2048), (512, 1024, 3072), (512, 3072, 1024), (2048, 2048, 2048)]
FEW = [(m, k, n) for m in (1, 2, 4, 8) for k, n in ((1024, 3072), (3072, 1024))]
BURST = 0.15


def peer(m, k, n, dtype):
    """Best GFLOP/s of torch's linear within a burst."""
    x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    torch.nn.functional.linear(x, w)
    best, begin, calls = float("inf"), time.perf_counter(), 0
    while calls < 5 or time.perf_counter() - begin < BURST:
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - start)
        calls += 1
    return 2 * m * k * n / best / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executable")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bf16", choices=["f32", "bf16"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    ours = subprocess.Popen([args.executable], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(m, k, n):
        print(m, k, n, args.dtype, args.threads, file=ours.stdin, flush=True)
        return json.loads(ours.stdout.readline())

    for m, k, n in MANY + FEW:
        mine, theirs = [], []
        for _ in range(args.rounds):
            mine.append(ask(m, k, n))
            time.sleep(0.02)  # the other side's threads stop spinning
            if m > 16:
                theirs.append(peer(m, k, n, dtype))
                time.sleep(0.02)
        mid = lambda key: statistics.median(r[key] for r in mine)
        row = {"m": m, "k": k, "n": n, "dtype": args.dtype, "threads": args.threads, "rounds": args.rounds}
        if m > 16:
            row |= {"ours_gflops": mid("gflops"), "torch_gflops": round(statistics.median(theirs), 1)}
            row["ratio"] = round(row["ours_gflops"] / row["torch_gflops"], 3)
            # Other work on the machine only slows: on a busy one the two bests say more than the medians.
            row |= {"ours_best": max(r["gflops"] for r in mine), "torch_best": round(max(theirs), 1)}
            row["ratio_of_bests"] = round(row["ours_best"] / row["torch_best"], 3)
        else:
            row |= {"weight_gbs": mid("weight_gbs_median"), "read_gbs": mid("read_gbs_median")}
            row["ratio"] = round(row["weight_gbs"] / row["read_gbs"], 3)
        print(json.dumps(row), flush=True)
    ours.stdin.close()
    ours.wait()


if __name__ == "__main__":
    main()
