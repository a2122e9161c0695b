#!/bin/bash
# Builds gitfast for the GPU at hand, runs all GPU checks and benchmarks, and writes their results as JSON to
# ${OUT:-benchmarks/results}/<gpu>/. Every step has a limit of its own and the later ones run whatever failed before;
# the exit status is 1 when any failed. All together they end within nine minutes. Needs no network.
# Without a git folder, GITFAST_COMMIT says which commit this is.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export GITFAST_COMMIT=${GITFAST_COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PATH=$PATH:/usr/local/cuda/bin
failed=()
declare -A seconds

gpu=$($python benchmarks/gpu.py) || { echo "torch sees no GPU" >&2; exit 1; }
results=${OUT:-benchmarks/results}/$gpu
mkdir -p "$results"

# step NAME SECONDS COMMAND...: the output goes to the terminal and to NAME.log.
step() {
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  echo "== $name"
  timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$results/$name.log"
  local status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || failed+=("$name")
  seconds[$name]=$((SECONDS - start))
  echo "== $name: status $status, ${seconds[$name]} s"
}

architecture=$($python -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))')
export CMAKE_CUDA_ARCHITECTURES=$architecture-real GITFAST_CUDA=on
step build 100 $python setup.py build_ext --inplace
step build-test 30 cmake --build build/cmake --target gitfast_cuda_test
step info 10 $python -m gitfast info
# The tests skip where there is no device, so that must not go unseen here.
step devices 10 $python -c 'from gitfast import _C; found = _C.cuda.devices(); print(found); assert found["devices"]'
step kernels 10 build/cmake/gitfast_cuda_test
step tests 60 $python -m pytest -q -p no:cacheprovider tests/cuda/test_device.py \
  tests/cuda/test_arguments.py tests/cuda/test_norm.py tests/cuda/test_activation.py tests/cuda/test_embed.py \
  tests/cuda/test_attention_cuda.py tests/cuda/test_linear_cuda.py tests/cuda/test_select_cuda.py \
  tests/cuda/test_search_cuda.py
# Images and whole captions, on small models.
step engine 60 $python -m pytest -q -p no:cacheprovider tests/cuda/test_functions.py tests/cuda/test_cuda_encoder.py \
  tests/cuda/test_cuda_engine.py tests/cuda/test_cuda_decode_modes.py tests/cuda/test_cuda_refill_engine.py \
  -k "not cpu"
for tool in memcheck racecheck synccheck; do
  step "sanitizer-$tool" 25 compute-sanitizer --tool $tool --error-exitcode 1 build/cmake/gitfast_cuda_test
done
# What launches, barriers and reading cost on this GPU, without a kernel of ours.
step probe 25 bash -c "mkdir -p build && nvcc -arch=sm_$architecture -std=c++17 -O3 -o build/gpu_probe benchmarks/gpu_probe.cu &&
  build/gpu_probe '$results/probe.json'"
# Images of 224 and 480 pixels; the other models take longer. A run that is stopped has written what it had.
step bench 75 $python -m gitfast bench kernels --device cuda --model base vqa --rounds 7 --json "$results/kernels.json"
step caption 65 $python benchmarks/caption_cuda.py --json "$results/caption.json"
step refill 20 $python benchmarks/refill_cuda.py --json "$results/refill.json"

took=$(for name in "${!seconds[@]}"; do echo "$name=${seconds[$name]}"; done)
TOOK=$took $python - "$results" ${failed[@]+"${failed[@]}"} <<'PY'
import json, os, sys, time
import torch
from gitfast.bench.machine import gpu_facts
folder, *failed = sys.argv[1:]
seconds = {name: int(value) for name, value in (line.split("=") for line in os.environ["TOOK"].split())}
date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
with open(f"{folder}/summary.json", "w") as file:
    json.dump({"gpu": gpu_facts(torch), "date": date, "seconds": seconds, "failed": failed}, file, indent=1)
PY
echo "results in $results after $SECONDS s; failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
