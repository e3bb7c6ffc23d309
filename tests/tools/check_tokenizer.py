"""Compares `loopc`'s token ids with Python's `tokenizers` on English, code, Chinese, emoji and special tokens.

    check_tokenizer.py LOOPC FOLDER        (FOLDER holds tokenizer.json and any checkpoint)
"""

import argparse, json, subprocess, sys

from tokenizers import Tokenizer

TEXTS = [
    "The capital of France is", "Hello, world! It's 3:45pm; don't panic.",
    'fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i * i).collect();\n    println!("{:?}", x);\n}\n',
    "def f(x):\n\treturn x**2  # square\n", "法国的首都是巴黎。", "今天天气很好,我们去公园散步吧!",
    "😀 🎉👩‍👩‍👧‍👦 🇫🇷", "   leading and   inner   spaces   \n\n\n\t\ttabs\r\n",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "1234567890 3.14159 1,000,000",
    "naïve café Ångström e\u0301 ﬁ Ωμέγα Привет мир שלום مرحبا",
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("loopc")
parser.add_argument("folder")
a = parser.parse_args()
reference = Tokenizer.from_file(f"{a.folder}/tokenizer.json")
bad = 0
for text in TEXTS:
    command = [a.loopc, "generate", a.folder, "--prompt", text, "--max-new-tokens", "1", "--json", "--dtype", "bf16"]
    out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ids = out["prompt_tokens"]
    same = ids == reference.encode(text).ids
    bad += not same
    print("same" if same else "DIFFERENT", len(ids), repr(text[:40]))
sys.exit(f"{bad} texts differ" if bad else 0)
