#!/bin/bash
# Try a wheel for 64-bit ARM under qemu: the main job with each set of kernels and each dtype, and tests that start no
# process, below tests/. .ci/aarch64.sh WHEEL [TEST...]; ROOT is the root folder that the wheel was built for
# (.ci/manylinux.sh).
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
  cpu=$1
  shift
  env PYTHONPATH="$work/site:$PWD" OPENBLAS_NUM_THREADS=1 OPENBLAS_CORETYPE=ARMV8 \
    qemu-aarch64 -cpu "$cpu" -L "$ROOT" "$ROOT/usr/bin/python3.11" "$@"
}

cd tests
for cpu in cortex-a72 neoverse-n1 max; do
  for dtype in float32 bfloat16 int8; do
    emulated "$cpu" -P ../.ci/try_wheel.py ../examples/images "$dtype"
  done
done
[ $# -lt 2 ] || emulated max -P -m pytest -q -o addopts= -m "not slow" -p no:cacheprovider --import-mode=importlib "${@:2}"
