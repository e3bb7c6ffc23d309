"""Loop Attention Qwen3 in plain PyTorch: the meaning of the model, one equation a line.

This file is the reference that every other implementation is checked against.  It favours clarity:
full masks, no caches, one sequence length, float64 by default.

    python loop_qwen3.py golden CHECKPOINT OUT.safetensors --tokens 3,1,4,1,5 [--dtype float32]

writes `logits` [B, T, vocab], `loss` [] (next-token cross entropy, mean over B*(T-1)) and, for every
parameter NAME, `grad.NAME` (d loss / d parameter) for the Hugging Face folder CHECKPOINT.

Source: the project's own reference implementation, `shared/reference/loop_qwen3.py`, copied unchanged but for this line.
"""
import argparse, json, math, pathlib
import torch
from safetensors.torch import load_file, save_file

MODES = ("base", "layer", "stack", "restart")


class Config:
    """Qwen3 keys as Hugging Face writes them, and one object of our own, `loop_attention`:

    {"mode": "layer" | "stack" | "restart", "window": 64, "loops": 2}

    absent: plain Qwen3 ("base").  IQuest-style `loop_num` / `loop_window_size` mean mode "stack".
    model_type "llama" (SmolLM2) and "iquestloopcoder" are the same model without the norms on q and k.
    """

    def __init__(self, folder):
        c = json.loads((pathlib.Path(folder) / "config.json").read_text())
        self.family = "qwen3" if c["model_type"] == "qwen3" else "llama"
        self.vocab, self.hidden, self.layers = c["vocab_size"], c["hidden_size"], c["num_hidden_layers"]
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.head_dim = c.get("head_dim") or self.hidden // self.heads
        self.eps = c["rms_norm_eps"]
        self.theta = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
        self.tied = c.get("tie_word_embeddings", False)
        loop = c.get("loop_attention")
        if loop is None and "loop_num" in c:
            loop = {"mode": "stack", "window": c.get("loop_window_size", 64), "loops": c["loop_num"]}
        loop = loop or {"mode": "base"}
        self.mode, self.window, self.loops = loop["mode"], loop.get("window", 64), loop.get("loops", 2)
        assert self.mode in MODES, self.mode


def load(folder, dtype):
    folder = pathlib.Path(folder)
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    return {k: v.to(dtype).requires_grad_() for f in files for k, v in load_file(folder / f).items()}


def rms_norm(x, w, eps):
    """y = x / sqrt(mean(x^2) + eps) * w, over the last axis."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def rope(x, theta):
    """x [B, heads, T, D]: rotate the pairs (i, i + D/2) by t * theta^(-2i/D)."""
    T, D = x.shape[-2:]
    angle = torch.arange(T, dtype=x.dtype)[:, None] * theta ** (-torch.arange(0, D, 2, dtype=x.dtype) / D)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q, k, v, window=None):
    """softmax(q k^T / sqrt(D)) v over keys j <= t, and with a window only over t - window < j <= t.

    q [B, H, T, D]; k, v [B, KV, T, D], each key head serving H / KV query heads in a row.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    t = torch.arange(q.shape[-2])
    mask = t[None, :] <= t[:, None]
    if window is not None:
        mask &= t[None, :] > t[:, None] - window
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -math.inf).softmax(-1) @ v


class Model:
    def __init__(self, config, weights):
        self.c, self.w = config, weights

    def linear(self, x, name):
        return x @ self.w[name].T

    def qkv(self, x, i):
        c, p = self.c, f"model.layers.{i}."
        B, T, _ = x.shape
        n = rms_norm(x, self.w[p + "input_layernorm.weight"], c.eps)
        heads = lambda name, H: self.linear(n, p + f"self_attn.{name}.weight").view(B, T, H, c.head_dim)
        q, k, v = heads("q_proj", c.heads), heads("k_proj", c.kv_heads), heads("v_proj", c.kv_heads)
        if c.family == "qwen3":  # the Llama family has no norm on q and k
            q = rms_norm(q, self.w[p + "self_attn.q_norm.weight"], c.eps)
            k = rms_norm(k, self.w[p + "self_attn.k_norm.weight"], c.eps)
        return rope(q.transpose(1, 2), c.theta), rope(k.transpose(1, 2), c.theta), v.transpose(1, 2)

    def gate(self, q, i):
        """g [B, H, T, 1] = sigmoid(q . w_h + b_h), q after its norm and after RoPE; g weighs the GLOBAL pass."""
        w, b = self.w[f"model.gate_projections.{i}.weight"], self.w[f"model.gate_projections.{i}.bias"]
        return torch.sigmoid((q * w[None, :, None, :]).sum(-1, keepdim=True) + b[None, :, None, None])

    def finish(self, x, attention, i):
        """Output projection and residual, then the SwiGLU block and its residual."""
        c, p = self.c, f"model.layers.{i}."
        B, H, T, D = attention.shape
        x = x + self.linear(attention.transpose(1, 2).reshape(B, T, H * D), p + "self_attn.o_proj.weight")
        n = rms_norm(x, self.w[p + "post_attention_layernorm.weight"], c.eps)
        up = torch.nn.functional.silu(self.linear(n, p + "mlp.gate_proj.weight")) * self.linear(n, p + "mlp.up_proj.weight")
        return x + self.linear(up, p + "mlp.down_proj.weight")

    def logits(self, tokens):
        c = self.c
        embedded = self.w["model.embed_tokens.weight"][tokens]
        x, kv = embedded, []
        for i in range(c.layers):  # first trip; in mode "layer" the only one
            q, k, v = self.qkv(x, i)
            kv.append((k, v))
            out = attend(q, k, v)
            if c.mode == "layer":
                g = self.gate(q, i)
                out = g * out + (1 - g) * attend(q, k, v, c.window)
            x = self.finish(x, out, i)
        for _ in range(1, c.loops if c.mode in ("stack", "restart") else 1):  # later trips, same weights
            if c.mode == "restart":
                x = embedded
            for i in range(c.layers):
                q, k, v = self.qkv(x, i)
                g = self.gate(q, i)
                x = self.finish(x, g * attend(q, *kv[i]) + (1 - g) * attend(q, k, v, c.window), i)
        x = rms_norm(x, self.w["model.norm.weight"], c.eps)
        return self.linear(x, "model.embed_tokens.weight" if c.tied else "lm_head.weight")

    def loss(self, tokens):
        logits = self.logits(tokens)[:, :-1].reshape(-1, self.c.vocab)
        return torch.nn.functional.cross_entropy(logits, tokens[:, 1:].reshape(-1))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("command", choices=["golden"])
    p.add_argument("checkpoint"), p.add_argument("out")
    p.add_argument("--tokens", required=True, help="token ids, ',' within a sequence and ';' between sequences of one length")
    p.add_argument("--dtype", default="float64")
    a = p.parse_args()
    tokens = torch.tensor([[int(t) for t in row.split(",")] for row in a.tokens.split(";")])
    model = Model(Config(a.checkpoint), load(a.checkpoint, getattr(torch, a.dtype)))
    loss = model.loss(tokens)
    loss.backward()
    out = {"tokens": tokens, "logits": model.logits(tokens).detach(), "loss": loss.detach()}
    out |= {f"grad.{k}": v.grad for k, v in model.w.items() if v.grad is not None}
    save_file({k: v.contiguous() for k, v in out.items()}, a.out)
    print(f"loss {loss.item():.6f}")


if __name__ == "__main__":
    main()
