"""The plain Qwen3 inside a loop checkpoint, for engines that know no Loop Attention: the same weights without the gates.

    python drop_gates.py LOOP BASE [--tokenizer DIR]

DIR has tokenizer.json (and tokenizer_config.json), which converters ask for. needs: pip install torch safetensors
"""
import argparse, json, pathlib, shutil
from safetensors.torch import load_file, save_file

p = argparse.ArgumentParser()
p.add_argument("loop", type=pathlib.Path), p.add_argument("base", type=pathlib.Path)
p.add_argument("--tokenizer", type=pathlib.Path)
a = p.parse_args()
config = json.loads((a.loop / "config.json").read_text())
for key in ("loop_attention", "loop_num", "loop_window_size"):
    config.pop(key, None)
a.base.mkdir(parents=True, exist_ok=True)
(a.base / "config.json").write_text(json.dumps(config, indent=2) + "\n")
weights = {k: v for f in sorted(a.loop.glob("*.safetensors")) for k, v in load_file(f).items() if "gate_projections" not in k}
save_file(weights, a.base / "model.safetensors", metadata={"format": "pt"})
for file in ("tokenizer.json", "tokenizer_config.json"):
    if a.tokenizer and (a.tokenizer / file).exists():
        shutil.copy(a.tokenizer / file, a.base / file)
