#!/usr/bin/env bash
# A training step of ours against PyTorch (eager and torch.compile) and against our own op-by-op program, in one run: B x T = 4 x 512, bf16
# compute, f32 trained tensors. Only good while nothing else runs.
#
#     LOOP=FOLDER TEXT=FILE ./benches/train.sh          LOOP: the Qwen3-0.6B shape cut to 4 layers, mode layer (benches/peers/README.md)
set -euo pipefail
cd "$(dirname "$0")/.."
: "${LOOP:?a folder with a loop checkpoint, mode layer}" "${TEXT:?a text}"
PYTHON=${PYTHON:-python3} THREADS=${THREADS:-2} LOOPC=${LOOPC:-target/release/loopc}
for trainable in ${TRAINABLE:-gates gates+norms all}; do
  echo "== $trainable"
  OURS="$PYTHON benches/peers/loopc_train_step.py $LOOPC $LOOP $TEXT --threads $THREADS --trainable $trainable"
  TORCH="$PYTHON benches/peers/torch_train_step.py $LOOP --threads $THREADS --trainable $trainable"
  "$PYTHON" benches/peers/compare.py --keys train_tok_s --rounds "${ROUNDS:-2}" --ours "$OURS" \
    --peer "ours, op by op=$OURS --no-fuse" --peer "PyTorch=$TORCH" --peer "torch.compile=$TORCH --compile"
done
