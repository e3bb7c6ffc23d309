"""Write a small random Hugging Face folder (config.json, model.safetensors) for loop_qwen3.py.

    python make_checkpoint.py OUT --mode layer --layers 2 --hidden 64 --heads 4 --kv-heads 2 --head-dim 16 \
        --intermediate 192 --vocab 512 --window 8 --seed 1 [--dtype bfloat16] [--untied] [--shards 2] [--gate-bias 4.0]

Weights are normal with standard deviation 0.1 (norm weights 1 + 0.1 n), so that every part of the model shows in the logits.

Source: the project's own reference implementation, `shared/reference/make_checkpoint.py`, copied unchanged but for this line.
"""
import argparse, json, pathlib
import torch
from safetensors.torch import save_file


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out", type=pathlib.Path)
    p.add_argument("--mode", default="layer", choices=["base", "layer", "stack", "restart"])
    for name, value in dict(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=192, vocab=512, window=8, loops=2, seed=1, shards=1).items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    p.add_argument("--theta", type=float, default=1e6)
    p.add_argument("--eps", type=float, default=1e-6)
    p.add_argument("--gate-bias", type=float, default=None, help="constant gate bias; random if left out")
    p.add_argument("--std", type=float, default=0.1)
    p.add_argument("--dtype", default="float32")
    p.add_argument("--untied", action="store_true")
    p.add_argument("--family", default="qwen3", choices=["qwen3", "llama"], help="llama: no norms on q and k")
    p.add_argument("--iquest-keys", action="store_true", help="write loop_num / loop_window_size instead of loop_attention")
    a = p.parse_args()
    torch.manual_seed(a.seed)
    w = {}

    def matrix(name, *shape):
        w[name] = a.std * torch.randn(*shape)

    def norm(name, size):
        w[name] = 1 + 0.1 * torch.randn(size)

    matrix("model.embed_tokens.weight", a.vocab, a.hidden)
    for i in range(a.layers):
        pre = f"model.layers.{i}."
        norm(pre + "input_layernorm.weight", a.hidden)
        norm(pre + "post_attention_layernorm.weight", a.hidden)
        if a.family == "qwen3":
            norm(pre + "self_attn.q_norm.weight", a.head_dim)
            norm(pre + "self_attn.k_norm.weight", a.head_dim)
        matrix(pre + "self_attn.q_proj.weight", a.heads * a.head_dim, a.hidden)
        matrix(pre + "self_attn.k_proj.weight", a.kv_heads * a.head_dim, a.hidden)
        matrix(pre + "self_attn.v_proj.weight", a.kv_heads * a.head_dim, a.hidden)
        matrix(pre + "self_attn.o_proj.weight", a.hidden, a.heads * a.head_dim)
        matrix(pre + "mlp.gate_proj.weight", a.intermediate, a.hidden)
        matrix(pre + "mlp.up_proj.weight", a.intermediate, a.hidden)
        matrix(pre + "mlp.down_proj.weight", a.hidden, a.intermediate)
        if a.mode != "base":
            w[f"model.gate_projections.{i}.weight"] = 0.3 * torch.randn(a.heads, a.head_dim)
            w[f"model.gate_projections.{i}.bias"] = (
                torch.randn(a.heads) if a.gate_bias is None else torch.full((a.heads,), a.gate_bias)
            )
    norm("model.norm.weight", a.hidden)
    if a.untied:
        matrix("lm_head.weight", a.vocab, a.hidden)
    config = {
        "architectures": ["Qwen3ForCausalLM" if a.family == "qwen3" else "LlamaForCausalLM"], "model_type": a.family, "hidden_act": "silu", "attention_bias": False,
        "vocab_size": a.vocab, "hidden_size": a.hidden, "num_hidden_layers": a.layers, "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads, "head_dim": a.head_dim, "intermediate_size": a.intermediate,
        "rms_norm_eps": a.eps, "rope_theta": a.theta, "tie_word_embeddings": not a.untied,
        "max_position_embeddings": 4096, "torch_dtype": a.dtype,
    }
    if a.mode != "base" and a.iquest_keys:
        config |= {"loop_num": a.loops, "loop_window_size": a.window}
    elif a.mode != "base":
        config["loop_attention"] = {"mode": a.mode, "window": a.window, "loops": a.loops}
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    w = {k: v.to(getattr(torch, a.dtype)).contiguous() for k, v in w.items()}
    if a.shards == 1:
        save_file(w, a.out / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = list(w), {}
    for s in range(a.shards):
        file = f"model-{s + 1:05d}-of-{a.shards:05d}.safetensors"
        part = names[s :: a.shards]
        save_file({k: w[k] for k in part}, a.out / file, metadata={"format": "pt"})
        weight_map |= {k: file for k in part}
    total = sum(v.numel() * v.element_size() for v in w.values())
    (a.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))


if __name__ == "__main__":
    main()
