#!/usr/bin/env bash
# A command that finds a GPU where there is none: PTX is evaluated on the CPU (compiler/ptx/driver). Slow; for small models and for
# `loopc check`:  tests/gpu/emulate.sh target/release/libptx_driver.so target/release/loopc check --ops --device cuda
set -euo pipefail
driver=$(realpath "${1:?usage: emulate.sh LIBPTX_DRIVER.so COMMAND...}")
shift
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
ln -s "$driver" "$place/libcuda.so.1"
LD_LIBRARY_PATH=$place${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$@"
