"""Ours against the peers, in one run: rates of each (prefill and decode, or others), and ours / best peer.

    python compare.py --ours 'COMMAND' --peer NAME='COMMAND' [--peer ...] [--rounds 2] [--keys train_tok_s]

Every COMMAND prints, as its last line, a JSON object with prefill_tok_s and decode_tok_s, or the keys that are asked for. An engine whose name begins
with "ours" is shown and is no peer. The engines take turns, `rounds` times, and
each keeps its best: what else the machine does then hits all of them alike. Exit 1 if a command fails or leaves a number out.
"""
import argparse, json, shlex, subprocess, sys

def run(name, command, keys):
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    try:
        assert done.returncode == 0, f"exit {done.returncode}"
        row = json.loads(done.stdout.strip().splitlines()[-1])
        return {key: float(row[key]) for key in keys}
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as e:
        sys.exit(f"{name}: {e!r}\n  {command}\n{done.stderr[-2000:]}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--ours", required=True)
    p.add_argument("--peer", action="append", required=True, metavar="NAME=COMMAND")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--keys", default="prefill_tok_s,decode_tok_s", help="rates that are compared, higher is better")
    a = p.parse_args()
    keys = a.keys.split(",")
    engines = {"ours": a.ours} | dict(peer.split("=", 1) for peer in a.peer)
    best = {name: dict.fromkeys(keys, 0.0) for name in engines}
    for _ in range(a.rounds):
        for name, command in engines.items():
            row = run(name, command, keys)
            best[name] = {key: max(best[name][key], row[key]) for key in keys}
    print(" " * 20 + "".join(f"{key:>16}" for key in keys))
    for name, row in best.items():
        print(f"{name:20}" + "".join(f"{row[key]:16.2f}" for key in keys))
    peers = [row for name, row in best.items() if not name.startswith("ours")]
    ratio = {key: best["ours"][key] / max(row[key] for row in peers) for key in keys}
    print(f"{'ours / best peer':20}" + "".join(f"{ratio[key]:16.2f}" for key in keys))
    print(json.dumps({"rates": best, "ours_over_best_peer": ratio}))


if __name__ == "__main__":
    main()
