"""Ours against the peers, in one run: prefill and decode rates of each, and ours / best peer.

    python compare.py --ours 'COMMAND' --peer NAME='COMMAND' [--peer ...] [--rounds 2]

Every COMMAND prints, as its last line, a JSON object with prefill_tok_s and decode_tok_s. The engines take turns, `rounds` times, and
each keeps its best: what else the machine does then hits all of them alike. Exit 1 if a command fails or leaves a number out.
"""
import argparse, json, shlex, subprocess, sys

KEYS = ("prefill_tok_s", "decode_tok_s")


def run(name, command):
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    try:
        assert done.returncode == 0, f"exit {done.returncode}"
        row = json.loads(done.stdout.strip().splitlines()[-1])
        return {key: float(row[key]) for key in KEYS}
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as e:
        sys.exit(f"{name}: {e!r}\n  {command}\n{done.stderr[-2000:]}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--ours", required=True)
    p.add_argument("--peer", action="append", required=True, metavar="NAME=COMMAND")
    p.add_argument("--rounds", type=int, default=2)
    a = p.parse_args()
    engines = {"ours": a.ours} | dict(peer.split("=", 1) for peer in a.peer)
    best = {name: dict.fromkeys(KEYS, 0.0) for name in engines}
    for _ in range(a.rounds):
        for name, command in engines.items():
            row = run(name, command)
            best[name] = {key: max(best[name][key], row[key]) for key in KEYS}
    print(f"{'':16}{'prefill tok/s':>16}{'decode tok/s':>16}")
    for name, row in best.items():
        print(f"{name:16}{row[KEYS[0]]:16.1f}{row[KEYS[1]]:16.2f}")
    ratio = {key: best["ours"][key] / max(row[key] for name, row in best.items() if name != "ours") for key in KEYS}
    print(f"{'ours / best peer':16}{ratio[KEYS[0]]:16.2f}{ratio[KEYS[1]]:16.2f}")
    print(json.dumps({"tok_s": best, "ours_over_best_peer": ratio}))


if __name__ == "__main__":
    main()
