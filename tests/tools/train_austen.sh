#!/usr/bin/env bash
# Makes the bundled model, tests/models/austen, with loopc alone: tokenizer and weights from a seed, training, one file in bf16.
#
#   tests/tools/train_austen.sh LOOPC AUSTEN.txt OUT        STEPS=2500 THREADS=2 are the defaults; OUT.run is kept and gone on with
#
# The model is trained in mode `layer` from its first step on. Bases that were retrofitted kept their gates near the bias they began with
# in runs of minutes (docs/experiments.md); here gates learn together with everything else, so that the demo's model uses both passes,
# and one run makes it. The last 3,000 lines of the text are held out.
set -euo pipefail
if [ $# -ne 3 ]; then
  sed -n '2,4s/^# *//p' "$0" >&2
  exit 2
fi
loopc=$1 text=$2 out=$3 run=$3.run
steps=${STEPS:-2500} threads=${THREADS:-2}

mkdir -p "$run"
head -n -3000 "$text" > "$run/train.txt"
tail -n 3000 "$text" > "$run/held-out.txt"
cat > "$run/recipe.toml" <<TOML
trainable = "all"
context = 256
batch = 8
steps = $steps
rate = 2e-3
decay = 0.1
beta2 = 0.95
warmup = 100
validate_every = 100
validate_tokens = 20000
TOML
[ -e "$run/fresh" ] || "$loopc" init "$run/fresh" --text "$run/train.txt" --vocab 2048 --mode layer --window 64 --gate-bias 2 --seed 1
resume=()
[ ! -e "$run/checkpoint" ] || resume=(--resume)
"$loopc" train "$run/fresh" --data "$run/train.txt" --validation "$run/held-out.txt" --recipe "$run/recipe.toml" -o "$run" \
  --threads "$threads" "${resume[@]}"
"$loopc" export "$run/checkpoint" --dtype bf16 -o "$out"
"$loopc" eval "$out" --text "$run/held-out.txt" --context 256 --threads "$threads"
