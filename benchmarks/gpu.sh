#!/bin/bash
# Builds gitfast for the GPU at hand, runs all GPU checks and benchmarks, and writes their results as JSON to
# ${OUT:-benchmarks/results}/<gpu>/. Every step has a limit of its own and the later ones run whatever failed before;
# the exit status is 1 when any failed. All together they end within nine minutes. Needs no network.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export GITFAST_COMMIT=${GITFAST_COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
failed=()

gpu=$($python benchmarks/gpu.py) || { echo "torch sees no GPU" >&2; exit 1; }
results=${OUT:-benchmarks/results}/$gpu
mkdir -p "$results"

# step NAME SECONDS COMMAND...: the output goes to the terminal and to NAME.log.
step() {
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  echo "== $name"
  timeout "$limit" "$@" 2>&1 | tee "$results/$name.log"
  local status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || failed+=("$name")
  echo "== $name: status $status, $((SECONDS - start)) s"
}

architecture=$($python -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))')
build() { CMAKE_CUDA_ARCHITECTURES=$architecture-real GITFAST_CUDA=on $python setup.py build_ext --inplace; }
export -f build
export architecture python
step build 150 bash -c build
[ ${#failed[@]} = 0 ] || exit 1
step info 20 $python -m gitfast info
step tests 90 $python -m pytest -q -p no:cacheprovider tests/cuda/test_device.py tests/cuda/test_norm.py
for tool in memcheck racecheck synccheck; do
  if command -v compute-sanitizer >/dev/null; then
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "sanitizer-$tool" 60 compute-sanitizer --tool $tool --error-exitcode 1 \
      $python -m pytest -q -p no:cacheprovider tests/cuda/test_norm.py -k "test_equals_float64 and (768 or 1025) and not 197"
  else
    echo "no compute-sanitizer: $tool was not run"
    failed+=("sanitizer-$tool")
  fi
done
step norm 60 $python benchmarks/norm_cuda.py --json "$results/norm.json"

$python - "$results" "${failed[@]}" <<'PY'
import json, sys, time
sys.path.insert(0, "benchmarks")
from gpu import gpu_facts
folder, *failed = sys.argv[1:]
with open(f"{folder}/summary.json", "w") as file:
    json.dump({"gpu": gpu_facts(), "failed": failed, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}, file, indent=1)
PY
echo "results in $results after $SECONDS s; failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
