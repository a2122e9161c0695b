#!/bin/bash
# Try a wheel for 64-bit ARM under qemu: the main job with each set of kernels, and tests that start no process, below
# tests/. .ci/aarch64.sh WHEEL [TEST...]; ROOT is the root folder that the wheel was built for (.ci/wheel.sh).
set -euo pipefail
wheel=$(realpath "$1")
cd "$(dirname "$0")/.."
work=$PWD/build/aarch64
rm -rf "$work"
"${PYTHON:-python3.11}" -m pip install --quiet --target "$work/site" --only-binary=:all: --platform manylinux_2_28_aarch64 \
  --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --python-version 3.11 "$wheel" \
  pytest pytest-timeout hypothesis pybind11

# In the folder of the tests, for what they share. One thread for OpenBLAS, inside numpy.
emulated() {
  local cpu=$1
  shift
  env PYTHONPATH="$work/site:$PWD" OPENBLAS_NUM_THREADS=1 OPENBLAS_CORETYPE=ARMV8 \
    qemu-aarch64 -cpu "$cpu" -L "$ROOT" "$ROOT/usr/bin/python3.11" "$@"
}

cd tests
# The products that a set adds to those before it: the others are the same source. Side by side, for qemu runs code on
# one core; what each says is shown whole.
runs=(cortex-a72:float32 cortex-a72:bfloat16 cortex-a72:int8 neoverse-n1:int8 max:bfloat16 max:int8 max:w8a8)
caption() { emulated "${1%:*}" -P ../.ci/try_wheel.py ../examples/images "${1#*:}" 2>&1; }
export -f caption emulated
export work ROOT
printf "%s\n" "${runs[@]}" | xargs -P "$(nproc)" -I RUN \
  bash -c 'said=$(caption RUN) && echo "$said" || { echo "RUN: $said"; exit 1; }'
[ $# -lt 2 ] || emulated max -P -m pytest -q -o addopts= -m "not slow" -p no:cacheprovider --import-mode=importlib "${@:2}"
