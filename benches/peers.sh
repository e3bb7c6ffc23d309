#!/usr/bin/env bash
# Ours against PyTorch + transformers (eager and torch.compile), candle and llama.cpp on the Qwen3-0.6B shape: prefill 512 (last logits) and
# decode at 512, in one run. bf16, but for candle, whose CPU matmul knows f32 only.
# Only good while nothing else runs. benches/peers/README.md says how to make what the variables name.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${LOOP:?a folder with the loop checkpoint, mode layer}" "${BASE:?the folder of the same model without gates}"
: "${LLAMA_BENCH:?the executable}" "${GGUF:?BASE as bf16 GGUF}"
PYTHON=${PYTHON:-python3} THREADS=${THREADS:-2}
LOOPC=${LOOPC:-target/release/loopc}
# Any command that ends with a line {"prefill_tok_s": ..., "decode_tok_s": ...}.
OURS=${OURS:-$LOOPC bench $LOOP --dtype bf16 --threads $THREADS --json}
TRANSFORMERS="$PYTHON benches/peers/transformers_prefill_decode.py $BASE --threads $THREADS"
peers=(--peer "transformers=$TRANSFORMERS" --peer "torch.compile=$TRANSFORMERS --compile")
if [ -n "${CANDLE:-}" ]; then peers+=(--peer "candle f32=env RAYON_NUM_THREADS=$THREADS $CANDLE $BASE f32 512 8 2"); fi
exec "$PYTHON" benches/peers/compare.py --ours "$OURS" --rounds "${ROUNDS:-2}" "${peers[@]}" \
    --peer "llama.cpp=$PYTHON benches/peers/llama_bench.py $LLAMA_BENCH $GGUF --threads $THREADS"
