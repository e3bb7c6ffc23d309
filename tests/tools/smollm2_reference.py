"""What transformers says about SmolLM2 in f32: the yardstick of check_smollm2.py.

    python smollm2_reference.py SMOLLM2 austen.txt OUT_DIR [--threads 2] [--skip-eval]

writes OUT_DIR/smollm2_greedy.json: `tokens`, greedy continuation until end-of-text; `tokens_64`, the same without ever stopping; how close
the runner-up came; and the ids of a chat prompt. OUT_DIR/smollm2_eval.json: the mean next-token loss, its key `how` says over what.
needs: pip install torch transformers tokenizers
"""
import argparse, json, pathlib
import tokenizers
import torch
import transformers

PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TOKENS, CONTEXT, NEW = 20000, 1024, 64
HOW = (
    "the whole text through tokenizer.json without special tokens, its first 20000 ids; windows [0:1024], [1024:2048], ... each read on its own "
    "from position 0, the last one shorter; T-1 predictions a window; model in f32 with eager attention, cross entropy of its logits in f64; "
    "sum over all predictions / their number"
)


def write(path, report):
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def greedy(model, ids, steps):
    """Argmax of a full forward per step, no cache and no stopping; and the smallest lead of a winner over its runner-up."""
    lead = float("inf")
    start = len(ids)
    for _ in range(steps):
        top = model(torch.tensor([ids])).logits[0, -1].topk(2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        ids = ids + [top.indices[0].item()]
    return ids[start:], lead


def eval_loss(model, ids):
    total, predictions, windows = 0.0, 0, []
    for begin in range(0, len(ids), CONTEXT):
        window = torch.tensor(ids[begin : begin + CONTEXT])
        if len(window) < 2:
            continue
        logits = model(window[None]).logits[0, :-1].double()
        loss = torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        total, predictions = total + loss, predictions + len(window) - 1
        windows.append([len(window), loss / (len(window) - 1)])
    return {"loss": total / predictions, "predictions": predictions, "tokens": len(ids), "context": CONTEXT, "windows": windows, "how": HOW}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder", type=pathlib.Path), p.add_argument("text", type=pathlib.Path), p.add_argument("out", type=pathlib.Path)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--skip-eval", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    template = transformers.AutoTokenizer.from_pretrained(a.folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(a.folder / "tokenizer.json"))
    model = transformers.AutoModelForCausalLM.from_pretrained(a.folder, dtype=torch.float32, attn_implementation="eager").eval()
    versions = {"dtype": "float32", "transformers": transformers.__version__, "torch": torch.__version__}
    with torch.inference_mode():
        prompt = tokenizer.encode(PROMPT).ids
        stopped = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)[0].tolist()[len(prompt):]
        tokens, lead = greedy(model, prompt, NEW)
        assert tokens[: len(stopped)] == stopped, "transformers' cache and full forward disagree"
        chat = template.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        write(a.out / "smollm2_greedy.json", {
            "prompt": PROMPT, "prompt_ids": prompt, "tokens": stopped, "text": tokenizer.decode(stopped), "tokens_64": tokens,
            "text_64": tokenizer.decode(tokens), "smallest_lead": lead, **versions,
            "chat": {"messages": MESSAGES, "text": chat, "ids": tokenizer.encode(chat, add_special_tokens=False).ids},
        })
        print(f"{len(stopped)} tokens until end-of-text; smallest lead over {NEW}: {lead:.4f}", flush=True)
        if not a.skip_eval:
            ids = tokenizer.encode(a.text.read_text(encoding="utf-8"), add_special_tokens=False).ids[:TOKENS]
            report = eval_loss(model, ids)
            write(a.out / "smollm2_eval.json", report | versions)
            print(f"loss {report['loss']:.6f} over {report['predictions']} predictions")


if __name__ == "__main__":
    main()
