#!/bin/bash
# Compile all that runs on the CPU with every GCC and clang found here, warnings being errors: .ci/compilers.sh [COMPILER...]
# Needs CMake, Ninja, Python's headers and pybind11, as `pip install .` does. Prints a line for each compiler, and the
# errors of those that fail.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
oldest_gcc=11 oldest_clang=14
failed=0

# The compilers of PATH that carry a version in their names.
found() {
  for name in g++ clang++; do
    oldest=$oldest_gcc
    [ "$name" = clang++ ] && oldest=$oldest_clang
    for version in $(seq "$oldest" 30); do
      if command -v "$name-$version" >/dev/null; then echo "$name-$version"; fi
    done
  done
}

[ $# -gt 0 ] || set -- $(found)
for compiler in "$@"; do
  folder=build/compilers/$(basename "$compiler")
  log=$folder.log
  mkdir -p "$folder"
  begin=$SECONDS
  if {
    cmake -S . -B "$folder" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DGITFAST_CUDA=off -DGITFAST_WERROR=on \
      -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" &&
      cmake --build "$folder" --target _C --target gitfast_native_test -- -k 0
  } >"$log" 2>&1; then
    echo "$compiler: clean, $((SECONDS - begin)) s"
  else
    echo "$compiler: FAILED ($log)"
    grep -E '(error|CMake Error)' -A 5 "$log" | head -40 || true
    failed=1
  fi
done
exit $failed
