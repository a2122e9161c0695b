#!/bin/bash
# Builds gitfast for the GPU at hand, and checks and times it in two parts of at most 4.5 minutes each; no network.
#
#     bash benchmarks/gpu.sh first      whether it works, and the times that decide: captions, kernels
#     bash benchmarks/gpu.sh second     sanitizers, tests, refilled batches, long prefixes, profiles
#     bash benchmarks/gpu.sh rehearse   both parts on the emulation, without a GPU
#     bash benchmarks/gpu.sh dry        both parts without their work, in seconds: what they call is there and takes it
#     bash benchmarks/gpu.sh carry      builds the programs that need not be built there, in build/carried
#
# Results go to $OUT, or to benchmarks/results/<gpu>: rows as they come, one log, and all of it in one tar.
set -euo pipefail
cd "$(dirname "$0")/.."
export GITFAST_COMMIT=${GITFAST_COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
case ${1:-} in
  dry | rehearse) export PYTHONPATH=${PYTHONPATH:-$PWD} ;;  # of an installed package, too
  *) export PYTHONPATH=$PWD ;;
esac
export PYTHONUNBUFFERED=1 PATH=$PATH:/usr/local/cuda/bin
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
