#!/usr/bin/env python3
"""A checkpoint of Qwen3-0.6B's shape with random weights (normal, 0.02): what speed is measured on.

    make_model.py OUT [--mode layer] [--window 64] [--layers 28] [--zeros]

The same arguments give the same config.json and tensor names everywhere, so that an artefact that was compiled on one machine runs on
another's copy. Random weights need torch; with --zeros the file is a hole of zeros, which is enough to compile.
"""
import argparse
import json
import pathlib
import struct

a = argparse.ArgumentParser(description=__doc__.split("\n")[0])
a.add_argument("out", type=pathlib.Path)
a.add_argument("--mode", default="layer", choices=["base", "layer", "restart", "stack"])
a.add_argument("--window", type=int, default=64)
a.add_argument("--layers", type=int, default=28)
a.add_argument("--zeros", action="store_true")
a = a.parse_args()

V, H, Q, KV, D, F = 151936, 1024, 16, 8, 128, 3072
config = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "attention_bias": False,
    "vocab_size": V, "hidden_size": H, "num_hidden_layers": a.layers, "num_attention_heads": Q, "num_key_value_heads": KV,
    "head_dim": D, "intermediate_size": F, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True,
    "max_position_embeddings": 40960, "torch_dtype": "bfloat16", "eos_token_id": 151645,
}
if a.mode != "base":
    config["loop_attention"] = {"mode": a.mode, "window": a.window, "loops": 2}
shapes = {"model.embed_tokens.weight": [V, H], "model.norm.weight": [H]}
for i in range(a.layers):
    p = f"model.layers.{i}."
    shapes |= {
        p + "input_layernorm.weight": [H], p + "post_attention_layernorm.weight": [H],
        p + "self_attn.q_proj.weight": [Q * D, H], p + "self_attn.k_proj.weight": [KV * D, H], p + "self_attn.v_proj.weight": [KV * D, H],
        p + "self_attn.o_proj.weight": [H, Q * D], p + "self_attn.q_norm.weight": [D], p + "self_attn.k_norm.weight": [D],
        p + "mlp.gate_proj.weight": [F, H], p + "mlp.up_proj.weight": [F, H], p + "mlp.down_proj.weight": [H, F],
    }
    if a.mode != "base":
        shapes |= {f"model.gate_projections.{i}.weight": [Q, D], f"model.gate_projections.{i}.bias": [Q]}

header, at = {}, 0
for name, shape in shapes.items():
    n = 2
    for d in shape:
        n *= d
    header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n]}
    at += n
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
a.out.mkdir(parents=True, exist_ok=True)
(a.out / "config.json").write_text(json.dumps(config, indent=1))
with open(a.out / "model.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text)
    if a.zeros:
        f.truncate(8 + len(text) + at)
    else:
        import torch

        g = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            norm = name.endswith("norm.weight")
            t = torch.ones(shape) if norm else torch.randn(shape, generator=g) * 0.02
            if name.endswith(".bias"):
                t += 1.0
            f.write(t.to(torch.bfloat16).view(torch.uint8).numpy().tobytes())
print(f"{a.out}: {at / 2 / 1e6:.0f}M parameters, {a.mode}")
