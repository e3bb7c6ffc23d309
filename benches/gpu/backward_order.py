"""How tiles of attention's backward wait for each other: a model of compiler/src/gpu/kernels/sweep_gradient/order.rs, to try orders without a GPU.

    backward_order.py [TOKENS SEQUENCES]...

A step takes 1, a tile 3 more; a step that adds to rows of dq waits for those that come before it. Told is the time over that of even work on
132 blocks without waiting. Measured on an H100 (8 x 2 heads of 128, 16,384 tokens): 4 x 4,096 took 1.96 ms by points and 1.56 ms in rounds.
"""
import sys

BLOCKS = 132
KEYS, ROWS, HEADS, GROUPS = 128, 64, 8, 2
TILE = 3


def time(tokens, sequences, odd, blocks=BLOCKS):
    """`odd(point, tiles of a point)`: does the point begin with its first keys, and its tiles with the last rows?"""
    keys, rows, points = tokens // KEYS, tokens // ROWS, sequences * HEADS
    free, done, work = [0.0] * blocks, {}, 0
    for number in range(points * keys):
        point, at = divmod(number, keys)
        backwards = odd(point, keys)
        first = (at if backwards else keys - 1 - at) * (KEYS // ROWS)
        steps = [(point, row, group) for row in range(first, rows) for group in range(GROUPS)]
        now = free[number % blocks] + TILE / 2
        for step in reversed(steps) if backwards else steps:
            now = max(now + 1, done.get(step, 0))
            done[step] = now + 0.3
        free[number % blocks] = now + TILE / 2
        work += len(steps)
    return max(free) / (work / BLOCKS)


def main():
    numbers = [int(x) for x in sys.argv[1:]] or [1024, 16, 2048, 8, 4096, 4, 16384, 1]
    if len(numbers) % 2 or any(n < 1 for n in numbers) or any(n % KEYS for n in numbers[::2]):
        sys.exit(f"{__doc__}\nTOKENS are multiples of {KEYS}.")
    for tokens, sequences in zip(numbers[::2], numbers[1::2]):
        keys = tokens // KEYS
        of_round = max(1, BLOCKS // keys)
        ways = {
            "all forwards": time(tokens, sequences, lambda p, _: False),
            "by points": time(tokens, sequences, lambda p, _: p % 2),
            "by rounds": time(tokens, sequences, lambda p, _: p // of_round % 2),
            "by rounds, as many blocks": time(tokens, sequences, lambda p, _: p // of_round % 2, min(BLOCKS, of_round * keys)),
        }
        print(f"{sequences:3} x {tokens:6}:", ", ".join(f"{name} {t:.2f}" for name, t in ways.items()))


main()
