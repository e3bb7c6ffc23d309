"""Compares what `loopc` says on a device with what is known: goldens, the CPU's texts, the CPU's losses. For run.sh; no packages needed.

    compare.py goldens LOOPC FOLDERS DEVICE DTYPE TOLERANCE
    compare.py texts A.json B.json
    compare.py losses TOLERANCE A.jsonl B.jsonl
"""
import array
import concurrent.futures
import json
import pathlib
import struct
import subprocess
import sys
import tempfile


def tensors(path):
    """A safetensors file as {name: (shape, values)}; f32, f64, i32 and i64."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    kinds = {"F32": "f", "F64": "d", "I32": "i", "I64": "q"}
    found = {}
    for name, info in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__" and info["dtype"] in kinds:
            begin, end = info["data_offsets"]
            values = array.array(kinds[info["dtype"]], data[8 + length + begin : 8 + length + end])
            found[name] = (info["shape"], values)
    return found


def golden(loopc, file, device, dtype):
    """max |a - b| / max |b| of the logits."""
    known = tensors(file)
    (batch, rows), ids = known["tokens"]
    _, wanted = known["logits"]
    tokens = [a for b in range(batch) for a in ("--tokens", ",".join(map(str, ids[b * rows : (b + 1) * rows])))]
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/logits.safetensors"
        command = [loopc, "logits", str(file.parent), *tokens, "-o", out, "--device", device, "--dtype", dtype, "--max-context", "64"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        _, found = tensors(out)["logits"]
    if len(found) != len(wanted) or any(x != x for x in found):
        return "other shape, or a NaN"
    return max(abs(a - b) for a, b in zip(found, wanted)) / max(abs(b) for b in wanted)


def goldens(loopc, root, device, dtype, tolerance):
    folders = [f for f in sorted(pathlib.Path(root).iterdir()) if f.is_dir()]

    def one(folder):
        return [(f"{folder.name}/{f.name}", golden(loopc, f, device, dtype)) for f in sorted(folder.glob("golden_*.safetensors"))]

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        results = [pair for rows in pool.map(one, folders) for pair in rows]
    bad = [(name, r) for name, r in results if not isinstance(r, float) or r > float(tolerance)]
    for name, r in bad:
        print(f"FAILED {name}: {r}")
    worst = max((r for _, r in results if isinstance(r, float)), default=float("nan"))
    print(f"{len(results)} goldens, {len(bad)} failed, the worst is off by {worst:.2e}")
    return not bad and results


def texts(a, b):
    a, b = (json.loads(pathlib.Path(p).read_text())["tokens"] for p in (a, b))
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    print(f"{same} of {len(a)} tokens are the same")
    return a == b


def losses(tolerance, a, b):
    def read(path):
        rows = map(json.loads, pathlib.Path(path).read_text().splitlines())
        return {r["step"]: r["loss"] for r in rows if r.get("loss") is not None}

    a, b = read(a), read(b)
    off = [abs(a[s] - b[s]) / abs(a[s]) for s in a if s in b]
    print(f"{len(off)} losses of {len(a)} ({len(b)} in the second run), off by at most {max(off, default=1.0):.2e}; last {list(b.values())[-1]:.4f}")
    return len(off) == len(a) and max(off) <= float(tolerance)


if __name__ == "__main__":
    run = {"goldens": goldens, "texts": texts, "losses": losses}[sys.argv[1]]
    sys.exit(0 if run(*sys.argv[2:]) else 1)
