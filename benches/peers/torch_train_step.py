"""One training step of Loop Attention (mode `layer`) in PyTorch on the CPU: eager or torch.compile, bf16 compute, f32 trained tensors.

    python torch_train_step.py FOLDER --trainable gates|gates+norms|all --batch 4 --context 512 [--compile] [--threads 2]

Prints the tokens per second of the best of `--steps` steps and, last, {"train_tok_s": ...}. Attention is
scaled_dot_product_attention for both passes; frozen tensors are bf16 and trained ones f32 under autocast, AdamW is the fused one.
"""
import argparse, json, pathlib, sys, time
import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "tools"))
from loop_qwen3 import Config, load, rms_norm


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def forward(c, w, tokens, targets, cos, sin, local):
    B, T = tokens.shape
    x = F.embedding(tokens, w["model.embed_tokens.weight"]).float()
    for i in range(c.layers):
        p = f"model.layers.{i}."
        n = rms_norm(x, w[p + "input_layernorm.weight"].float(), c.eps).bfloat16()
        heads = lambda y, h: y.view(B, T, h, c.head_dim)
        q = heads(F.linear(n, w[p + "self_attn.q_proj.weight"]), c.heads)
        k = heads(F.linear(n, w[p + "self_attn.k_proj.weight"]), c.kv_heads)
        v = heads(F.linear(n, w[p + "self_attn.v_proj.weight"]), c.kv_heads).transpose(1, 2)
        norm = lambda y, name: rms_norm(y.float(), w[p + name].float(), c.eps).transpose(1, 2)
        q = rotate(norm(q, "self_attn.q_norm.weight"), cos, sin).bfloat16()
        k = rotate(norm(k, "self_attn.k_norm.weight"), cos, sin).bfloat16()
        gate = torch.einsum("bhtd,hd->bht", q.float(), w[f"model.gate_projections.{i}.weight"].float())
        g = torch.sigmoid(gate + w[f"model.gate_projections.{i}.bias"].float()[:, None])[..., None]
        far = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        near = F.scaled_dot_product_attention(q, k, v, attn_mask=local, enable_gqa=True)
        out = (g * far + (1 - g) * near).bfloat16().transpose(1, 2).reshape(B, T, -1)
        x = x + F.linear(out, w[p + "self_attn.o_proj.weight"])
        n = rms_norm(x, w[p + "post_attention_layernorm.weight"].float(), c.eps).bfloat16()
        y = F.silu(F.linear(n, w[p + "mlp.gate_proj.weight"])) * F.linear(n, w[p + "mlp.up_proj.weight"])
        x = x + F.linear(y, w[p + "mlp.down_proj.weight"])
    n = rms_norm(x, w["model.norm.weight"].float(), c.eps).bfloat16()
    head = w["model.embed_tokens.weight"] if c.tied else w["lm_head.weight"]
    return F.cross_entropy(F.linear(n, head).view(B * T, -1).float(), targets.reshape(-1))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("--trainable", default="gates", choices=["gates", "gates+norms", "all"])
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--compile", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    c = Config(a.folder)
    wanted = {
        "gates": lambda n: "gate_projections" in n,
        "gates+norms": lambda n: "gate_projections" in n or n.endswith("norm.weight"),
        "all": lambda n: True,
    }[a.trainable]
    w = {n: v.detach() for n, v in load(a.folder, torch.bfloat16).items()}
    w = {n: v.float().requires_grad_() if wanted(n) else v for n, v in w.items()}
    trained = [v for v in w.values() if v.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    t = torch.arange(a.context)
    local = (t[None, :] <= t[:, None]) & (t[None, :] > t[:, None] - c.window)
    angle = t.float()[:, None] * c.theta ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
    ids = torch.randint(0, c.vocab, (a.batch, a.context + 1))
    f = torch.compile(forward) if a.compile else forward
    best = 0.0
    for _ in range(a.steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = f(c, w, ids[:, :-1], ids[:, 1:], angle.cos(), angle.sin(), local)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
        best = max(best, a.batch * a.context / seconds)
        print(f"{seconds:.3f} s, loss {loss.item():.4f}", flush=True)
    print(json.dumps({"train_tok_s": round(best, 2)}))


if __name__ == "__main__":
    main()
