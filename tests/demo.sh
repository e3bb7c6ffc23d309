#!/usr/bin/env bash
# make demo: the bundled model, compiled and asked to go on; how long each stage took.
set -euo pipefail
loopc=$1
model="$(dirname "$0")/models/austen"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

echo "== loopc doctor"
"$loopc" doctor
echo
echo "== loopc compile: every stage's time, every level as text"
"$loopc" compile "$model" -o "$out/austen.loopc" --time --emit all="$out/stages"
echo "graph, plan, MLIR and LLVM IR: $(find "$out/stages" -type f | wc -l) files, $(du -sh "$out/stages" | cut -f1)"
echo
echo "== loopc generate, from the artefact"
"$loopc" generate "$out/austen.loopc" --prompt "Emma Woodhouse was" --max-new-tokens 100 --temperature 0.7 --top-k 40 --seed 7 -v
echo
echo "== loopc bench"
"$loopc" bench "$out/austen.loopc" --context 256 --decode 64
