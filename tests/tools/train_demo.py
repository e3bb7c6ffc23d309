"""Trains the small Loop Attention model that `make demo` uses: about 3 M parameters, English of the early 19th century.

    python train_demo.py IDS.npy OUT [--steps 1500]

IDS.npy holds the token ids of public-domain text (Jane Austen's novels) under the demo's own BPE tokenizer of 2,048 entries.
Writes a Hugging Face folder (config.json, model.safetensors in bfloat16) in mode `layer`.
"""
import argparse, json, math, pathlib, time
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

V, HID, LAYERS, H, KV, D, INTER, W, THETA, EPS = 2048, 192, 6, 6, 2, 32, 512, 64, 10000.0, 1e-6


def init():
    g = torch.Generator().manual_seed(1)
    w = {}
    matrix = lambda name, *s, std=0.02: w.__setitem__(name, std * torch.randn(*s, generator=g))
    matrix("model.embed_tokens.weight", V, HID)
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        for n, s in {"input_layernorm": HID, "post_attention_layernorm": HID, "self_attn.q_norm": D, "self_attn.k_norm": D}.items():
            w[p + n + ".weight"] = torch.ones(s)
        matrix(p + "self_attn.q_proj.weight", H * D, HID)
        matrix(p + "self_attn.k_proj.weight", KV * D, HID)
        matrix(p + "self_attn.v_proj.weight", KV * D, HID)
        matrix(p + "self_attn.o_proj.weight", HID, H * D, std=0.02 / math.sqrt(2 * LAYERS))
        matrix(p + "mlp.gate_proj.weight", INTER, HID)
        matrix(p + "mlp.up_proj.weight", INTER, HID)
        matrix(p + "mlp.down_proj.weight", HID, INTER, std=0.02 / math.sqrt(2 * LAYERS))
        w[f"model.gate_projections.{i}.weight"] = torch.zeros(H, D)
        w[f"model.gate_projections.{i}.bias"] = torch.full((H,), 2.0)
    w["model.norm.weight"] = torch.ones(HID)
    return w


def norm(x, w):
    return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS).to(x.dtype) * w


def forward(w, tokens, drop):
    B, T = tokens.shape
    dev = tokens.device
    angle = torch.arange(T, device=dev)[:, None] * THETA ** (-torch.arange(0, D, 2, device=dev) / D)
    cos, sin = angle.cos(), angle.sin()

    def rope(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

    t = torch.arange(T, device=dev)
    causal = t[None] <= t[:, None]
    local = causal & (t[None] > t[:, None] - W)
    x = F.dropout(w["model.embed_tokens.weight"][tokens], drop)
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        n = norm(x, w[p + "input_layernorm.weight"])
        heads = lambda name, k: (n @ w[p + f"self_attn.{name}.weight"].T).view(B, T, k, D).transpose(1, 2)
        q = rope(norm(heads("q_proj", H), w[p + "self_attn.q_norm.weight"]))
        k = rope(norm(heads("k_proj", KV), w[p + "self_attn.k_norm.weight"]))
        v = heads("v_proj", KV)
        k, v = k.repeat_interleave(H // KV, 1), v.repeat_interleave(H // KV, 1)
        s = (q @ k.transpose(-1, -2)).float() / math.sqrt(D)
        glob = s.masked_fill(~causal, -math.inf).softmax(-1).to(v.dtype) @ v
        loc = s.masked_fill(~local, -math.inf).softmax(-1).to(v.dtype) @ v
        g = torch.sigmoid((q * w[f"model.gate_projections.{i}.weight"][:, None]).sum(-1, keepdim=True) + w[f"model.gate_projections.{i}.bias"][:, None, None])
        o = (g * glob + (1 - g) * loc).transpose(1, 2).reshape(B, T, H * D).to(x.dtype)
        x = x + F.dropout(o @ w[p + "self_attn.o_proj.weight"].T, drop)
        n = norm(x, w[p + "post_attention_layernorm.weight"])
        up = F.silu(n @ w[p + "mlp.gate_proj.weight"].T) * (n @ w[p + "mlp.up_proj.weight"].T)
        x = x + F.dropout(up @ w[p + "mlp.down_proj.weight"].T, drop)
    return norm(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T


def main():
    a = argparse.ArgumentParser()
    a.add_argument("ids"), a.add_argument("out", type=pathlib.Path)
    a.add_argument("--steps", type=int, default=1500), a.add_argument("--batch", type=int, default=96)
    a.add_argument("--context", type=int, default=256), a.add_argument("--lr", type=float, default=2e-3)
    a.add_argument("--drop", type=float, default=0.15)
    a = a.parse_args()
    dev = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    ids = torch.from_numpy(np.load(a.ids).astype(np.int64)).to(dev)
    held, ids = ids[-40000:], ids[:-40000]
    w = {k: v.to(dev).requires_grad_() for k, v in init().items()}
    groups = [dict(params=[v for v in w.values() if v.dim() > 1], weight_decay=0.1), dict(params=[v for v in w.values() if v.dim() == 1], weight_decay=0.0)]
    opt = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95))
    start = time.time()
    batch = lambda src, at: torch.stack([src[i : i + a.context + 1] for i in at])

    def loss_of(rows, drop):
        with torch.autocast(dev, torch.bfloat16):
            logits = forward(w, rows[:, :-1], drop)
        return F.cross_entropy(logits.float().reshape(-1, V), rows[:, 1:].reshape(-1))

    for step in range(a.steps):
        lr = a.lr * min(1, (step + 1) / 100) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / a.steps)))
        for gr in opt.param_groups:
            gr["lr"] = lr
        loss = loss_of(batch(ids, torch.randint(len(ids) - a.context - 1, (a.batch,)).tolist()), a.drop)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(w.values()), 1.0)
        opt.step()
        if step % 250 == 0 or step == a.steps - 1:
            with torch.no_grad():
                val = loss_of(batch(held, range(0, len(held) - a.context - 1, a.context)), 0.0)
            print(f"step {step} train {loss.item():.4f} held out {val.item():.4f} {time.time() - start:.0f} s", flush=True)
    a.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().bfloat16().cpu().contiguous() for k, v in w.items()}, a.out / "model.safetensors", metadata={"format": "pt"})
    config = dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_act="silu", attention_bias=False, vocab_size=V, hidden_size=HID,
        num_hidden_layers=LAYERS, num_attention_heads=H, num_key_value_heads=KV, head_dim=D, intermediate_size=INTER, rms_norm_eps=EPS,
        rope_theta=THETA, tie_word_embeddings=True, max_position_embeddings=1024, torch_dtype="bfloat16", eos_token_id=0,
        loop_attention=dict(mode="layer", window=W, loops=2),
    )
    (a.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
