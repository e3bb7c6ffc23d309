#!/usr/bin/env bash
# Everything that wants a GPU, in one call: tests/gpu/run.sh LOOPC [OUT] [STEP...]
#
# LOOPC is the program, OUT a folder for logs and results (default: a temporary one). Each step has a time limit and tells one line; the
# last line counts the failures. Steps by name: doctor ops modes random goldens generate bits train bench compare tune.
# Needs python3, no packages; tune also benches/gpu/make_model.py.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
loopc=$(realpath "${1:?usage: run.sh LOOPC [OUT] [STEP...]}")
out=${2:-$(mktemp -d)}
mkdir -p "$out"
out=$(realpath "$out")
shift $(($# < 2 ? $# : 2))
wanted=" $* "
device=${DEVICE:-cuda}
cases=${CASES:-4}
austen=$here/../models/austen
export LOOPC_CACHE=$out/cache
failed=0
begin=$SECONDS

# step GROUP NAME SECONDS COMMAND..: runs it if its group is wanted, and tells how it ended.
step() {
    local group=$1 name=$2 limit=$3
    shift 3
    [[ $wanted =~ ^\ *$ || $wanted == *" $group "* ]] || return 0
    local start=$SECONDS code=0 log=$out/$name.log
    timeout --kill-after=5 "$limit" "$@" >"$log" 2>&1 || code=$?
    local last
    last=$(grep -v '^ *loopc check' "$log" | tail -n 1 | cut -c1-220)
    case $code in
        0) printf 'ok      %-20s %4d s  %s\n' "$name" $((SECONDS - start)) "$last" ;;
        *)
            failed=$((failed + 1))
            [[ $code == 124 || $code == 137 ]] && last="took longer than $limit s: $last"
            printf 'FAILED  %-20s %4d s  %s\n' "$name" $((SECONDS - start)) "$last"
            grep -E '^(FAILED|loopc:)' "$log" | cut -c1-300 | sort | uniq -c | sort -rn | head -n "${SHOWN:-12}" | sed 's/^ */        /'
            ;;
    esac
}

# The same on the CPU and on the device, so many tokens at least: generate_both DTYPE TOKENS ALIKE
generate_both() {
    local prompt="It is a truth universally acknowledged, that"
    for where in cpu "$device"; do
        "$loopc" generate "$austen" --prompt "$prompt" --max-new-tokens "$2" --dtype "$1" --device "$where" --json \
            >"$out/text-$1-${where/:/-}.json" || return 1
    done
    python3 "$here/compare.py" texts "$3" "$out/text-$1-cpu.json" "$out/text-$1-${device/:/-}.json"
}

# Logits of two processes are the same to the bit.
bits() {
    local tokens
    tokens=$(seq -s, 1 150)
    for i in 1 2; do
        "$loopc" logits "$austen" --tokens "$tokens" --dtype "$1" --device "$device" -o "$out/bits-$1-$i.safetensors" || return 1
    done
    cmp "$out/bits-$1-1.safetensors" "$out/bits-$1-2.safetensors" && echo "the same bits"
}

# train_both DTYPE: 20 steps on both, their losses side by side, and the device's run resumed for 5 more.
train_both() {
    cat "$here"/../*.rs >"$out/data.txt"
    for where in cpu "$device"; do
        rm -rf "$out/train-$1-${where/:/-}"
        "$loopc" train "$austen" --data "$out/data.txt" -o "$out/train-$1-${where/:/-}" --trainable all --context 64 --batch 2 \
            --accumulate 2 --steps 20 --rate 1e-4 --dtype "$1" --device "$where" || return 1
    done
    "$loopc" train "$austen" --data "$out/data.txt" -o "$out/train-$1-${device/:/-}" --resume --steps 25 --dtype "$1" --device "$device" ||
        return 1
    python3 "$here/compare.py" losses "$2" "$out/train-$1-cpu/metrics.jsonl" "$out/train-$1-${device/:/-}/metrics.jsonl"
}

# Every way of the kernels of Qwen3-0.6B's shape: they agree, and the fastest ones are in OUT/tuning.toml. One layer has all kernels.
tune_qwen() {
    local model
    model=$(mktemp -d)
    trap 'rm -rf "$model"' EXIT
    python3 "$here/../../benches/gpu/make_model.py" "$model" --layers 1 --zeros >/dev/null &&
        "$loopc" tune "$model" --dtype bf16 --device "$device" -o "$out/tuning.toml"
}

export -f generate_both bits train_both tune_qwen
export loopc out here device austen

step doctor doctor 60 "$loopc" doctor
for dtype in f32 bf16; do
    for fuse in "" --no-fuse; do
        name=$dtype${fuse#--no}
        step modes "modes-$name" 400 "$loopc" check --modes --cases 2 --limit 60 --device "$device" --dtype $dtype $fuse
    done
done
for fuse in "" --no-fuse; do
    step ops "ops${fuse#--no}" 240 "$loopc" check --ops --cases "$cases" --limit 30 --device "$device" $fuse
done
step random random 240 "$loopc" check --random --cases 40 --limit 30 --device "$device"
step goldens goldens-f32 300 python3 "$here/compare.py" goldens "$loopc" "$here/../goldens" "$device" f32 1e-4
step goldens goldens-bf16 300 python3 "$here/compare.py" goldens "$loopc" "$here/../goldens" "$device" bf16 4e-2
step generate generate-f32 120 bash -c 'generate_both f32 100 100'
step generate generate-bf16 120 bash -c 'generate_both bf16 40 5'
step bits bits-f32 60 bash -c 'bits f32'
step bits bits-bf16 60 bash -c 'bits bf16'
step train train-f32 240 bash -c 'train_both f32 1e-3'
step train train-bf16 240 bash -c 'train_both bf16 3e-2'
step bench bench-f32 120 "$loopc" bench "$austen" --context 512 --decode 64 --kernels --device "$device"
step bench bench-bf16 120 "$loopc" bench "$austen" --context 512 --decode 64 --kernels --device "$device" --dtype bf16 \
    --trace "$out/trace.json"
step compare compare-bf16 240 "$loopc" bench "$austen" --compare 512 --device "$device" --dtype bf16
step tune tune 60 bash -c tune_qwen
for log in bench-f32 bench-bf16 compare-bf16; do
    [[ -f $out/$log.log ]] && head -n 5 "$out/$log.log" | sed "s/^/        $log: /"
done
echo "$failed failed, $((SECONDS - begin)) s; logs in $out"
[[ $failed == 0 ]]
