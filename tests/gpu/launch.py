"""Runs the compiler's GPU kernels from Python, beside PyTorch: what benchmarks and checks against peers use.

    from launch import Module
    m = Module("DIR")                       # code.ptx and kernels.json, from compiler/examples/kernels.rs
    m.run("matmul_4096x1024", {"B": 1, "T": 512}, [a, w, out])      # torch tensors on the GPU, one per argument of the plan's kernel
    m.time(lambda: m.run(...))              # median seconds of graph replays

The meaning of what it reads is runtime/src/artefact.rs: variants, steps, tensor maps. Needs torch and the driver, no toolkit.
"""
import ctypes
import json
import math
import pathlib
import statistics

import torch

cuda = ctypes.CDLL("libcuda.so.1")
SYMBOLS = ["B", "T", "S", "C"]
TYPES = {"f32": 7, "bf16": 9, "f16": 6, "i32": 3}  # CUtensorMapDataType
WIDTH = {"f32": 4, "bf16": 2, "f16": 2, "i32": 4, "i1": 1}


def check(code, what):
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{what}: {text.value.decode() if text.value else code}")


def size(s, sizes):
    n = s["coef"]
    for sym in s.get("syms", []):
        n *= sizes[sym]
    return n


def fits(variant, sizes):
    """May these sizes be run by it?"""
    limit = variant.get("at_most")
    few = limit is None or size(limit[0], sizes) <= limit[1]
    return few and all(size(s, sizes) % n == 0 for s, n in variant.get("multiples", []))


class Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint32 * 16)]


class Config(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint) for n in "gx gy gz bx by bz shared".split()]
    _fields_ += [("stream", ctypes.c_void_p), ("attrs", ctypes.POINTER(Attribute)), ("count", ctypes.c_uint)]


class Module:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        torch.zeros(1, device="cuda")  # makes the context
        log = ctypes.create_string_buffer(1 << 16)
        options = (ctypes.c_int * 2)(5, 6)  # CU_JIT_ERROR_LOG_BUFFER and its size
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
        self.module = ctypes.c_void_p()
        code = cuda.cuModuleLoadDataEx(ctypes.byref(self.module), (folder / "code.ptx").read_bytes() + b"\0", 2, options, values)
        check(code, f"{folder}: {log.value.decode()}")
        rows = json.loads((folder / "kernels.json").read_text())
        self.kernels = {r["kernel"]["name"]: r for r in rows}
        self.functions, self.memory = {}, {}
        self.multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count

    def function(self, step):
        name = step["function"]
        if name not in self.functions:
            f = ctypes.c_void_p()
            check(cuda.cuModuleGetFunction(ctypes.byref(f), self.module, name.encode()), name)
            check(cuda.cuFuncSetAttribute(f, 8, step["shared"]), f"{name}: {step['shared']} bytes of shared memory")
            if step.get("cluster", 0) > 8:
                check(cuda.cuFuncSetAttribute(f, 14, 1), name)
            self.functions[name] = f
        return self.functions[name]

    def workspace(self, key, n, zero=False):
        have = self.memory.get(key)
        if have is None or have.numel() < n:
            make = torch.zeros if zero else torch.empty
            have = self.memory[key] = make(max(n, 256), dtype=torch.uint8, device="cuda")
        return have.data_ptr()

    def variant(self, name, sizes):
        for v in self.kernels[name]["gpu"]["variants"]:
            if fits(v, sizes):
                return v
        raise RuntimeError(f"{name}: no variant for {sizes}")

    def run(self, name, sizes, tensors, variant=None):
        sizes = {**{s: 1 for s in SYMBOLS}, **sizes}
        v = self.kernels[name]["gpu"]["variants"][variant] if variant is not None else self.variant(name, sizes)
        pointers = [t.data_ptr() for t in tensors]
        spaces = [self.workspace(i, size(s, sizes)) for i, s in enumerate(v.get("workspaces", []))]
        counters = [self.workspace(name, 4 * v["counters"], True)] if v.get("counters") else []
        for step in v["steps"]:
            values = [ctypes.c_uint64(p) for p in pointers + spaces + counters] + [ctypes.c_int32(sizes[s]) for s in SYMBOLS]
            values += [self.map(m, sizes, pointers, spaces) for m in step.get("maps", [])]
            args = (ctypes.c_void_p * len(values))(*[ctypes.addressof(x) for x in values])
            blocks = 0
            for tiles in [step["tiles"], *step.get("more_tiles", [])]:
                blocks += math.prod(-(-size(n, sizes) // block) for n, block in tiles)
            if step.get("per_multiprocessor"):
                blocks = min(blocks, step["per_multiprocessor"] * self.multiprocessors)
            cluster = max(1, step.get("cluster", 0))
            blocks = -(-blocks // cluster) * cluster
            attrs = (Attribute * 2)()
            attrs[0].id, attrs[0].value[0], attrs[0].value[1], attrs[0].value[2] = 4, cluster, 1, 1
            attrs[1].id, attrs[1].value[0] = 6, 1 if step.get("overlap") else 0
            stream = torch.cuda.current_stream().cuda_stream
            config = Config(blocks, 1, 1, step["threads"], 1, 1, step["shared"], stream, attrs, 2)
            f = self.function(step)
            check(cuda.cuLaunchKernelEx(ctypes.byref(config), f, args, None), f"{step['function']} x {blocks}")

    def map(self, m, sizes, pointers, spaces):
        (kind, index), = m["source"].items()
        base = (pointers if kind == "buffer" else spaces)[index] + size(m["offset"], sizes) * WIDTH[m["dtype"]]
        n = len(m["dims"])
        raw = ctypes.create_string_buffer(128 + 64)
        at = (ctypes.addressof(raw) + 63) // 64 * 64
        dims = (ctypes.c_uint64 * n)(*[size(d, sizes) for d in m["dims"]])
        strides = (ctypes.c_uint64 * max(1, n - 1))(*[size(s, sizes) * WIDTH[m["dtype"]] for s in m["strides"]])
        box = (ctypes.c_uint32 * n)(*m["box"])
        ones = (ctypes.c_uint32 * n)(*[1] * n)
        swizzle = {0: 0, 32: 1, 64: 2, 128: 3}[m["swizzle"]]
        code = cuda.cuTensorMapEncodeTiled(
            ctypes.c_void_p(at), TYPES[m["dtype"]], n, ctypes.c_void_p(base), dims, strides, box, ones, 0, swizzle, 2, 0)
        check(code, f"a tensor map of {list(dims)} by {list(strides)} bytes, box {list(box)}")
        value = (ctypes.c_char * 128).from_address(at)
        value.keep = raw
        return value

    @staticmethod
    def time(f, repeats=20, inner=10):
        """Median seconds of `f`, from replays of a graph of `inner` calls."""
        return time(f, repeats, inner)


def time(f, repeats=20, inner=10):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            f()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(inner):
                f()
        graph.replay()
        times = []
        for _ in range(repeats):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            graph.replay()
            b.record()
            torch.cuda.synchronize()
            times.append(a.elapsed_time(b) * 1e-3 / inner)
    return statistics.median(times)
