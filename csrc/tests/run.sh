#!/bin/sh
# Builds and runs the native test program under a sanitizer, or for 64-bit ARM under qemu, or for Windows under wine
# (Debian's wine64, g++-mingw-w64-x86-64-posix); or the extension itself under both sanitizers, with threads of Python
# that use one model:
# csrc/tests/run.sh address|thread|none|aarch64|windows|python
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)

# build FOLDER TARGET OPTION... Each source by itself: it has to include what it uses.
build() {
  folder=$root/build/native-$1 target=$2
  shift 2
  cmake -S "$root" -B "$folder" -G Ninja -DGITFAST_CUDA=off -DGITFAST_UNITY=OFF -DGITFAST_WERROR=on "$@" \
    >/dev/null
  cmake --build "$folder" --target "$target"
}

# python_under SANITIZER FLAGS: a copy of the package, in links, around an extension of its own.
python_under() {
  python=$(command -v python || command -v python3)
  build "python-$1" _C -DGITFAST_SANITIZE="$2" -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
  package=$folder/package/gitfast
  rm -rf "$folder/package" && mkdir -p "$package"
  for entry in "$root"/gitfast/*; do
    case $entry in */_C.*.so | */__pycache__) ;; *) ln -s "$entry" "$package" ;; esac
  done
  ln -s "$folder"/_C.*.so "$package"
  ln -s "$root/models" "$folder/package"  # the bundled models
  # The interpreter is not built with the sanitizer, whose runtime has to come first: with it the C++ library, so that
  # it finds what throws. Leaks are not looked for: CPython and NumPy keep memory to the end, and call all of ours.
  # Nothing else is suppressed. Without setarch the kernel may map memory where ThreadSanitizer keeps its own.
  runtime="$(gcc -print-file-name=lib$1san.so) $(gcc -print-file-name=libstdc++.so)"
  case $1 in
    a) set -- env ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 ;;
    t) set -- setarch -R env TSAN_OPTIONS=halt_on_error=1 ;;
  esac
  "$@" LD_PRELOAD="$runtime" PYTHONPATH="$folder/package:$root/tests" PYTHONMALLOC=malloc OPENBLAS_NUM_THREADS=1 \
    "$python" -P "$root/csrc/tests/threads.py"
}

case ${1:-} in
  address) build address gitfast_native_test -DGITFAST_BINDINGS=OFF -DGITFAST_SANITIZE=address,undefined ;;
  thread) build thread gitfast_native_test -DGITFAST_BINDINGS=OFF -DGITFAST_SANITIZE=thread ;;
  none) build none gitfast_native_test -DGITFAST_BINDINGS=OFF ;;
  aarch64)
    build aarch64 gitfast_native_test -DGITFAST_BINDINGS=OFF -DCMAKE_TOOLCHAIN_FILE="$root/csrc/tests/aarch64.cmake"
    ;;
  windows)
    build windows gitfast_native_test -DGITFAST_BINDINGS=OFF -DCMAKE_TOOLCHAIN_FILE="$root/csrc/tests/mingw.cmake"
    ;;
  python)
    python_under a address,undefined
    python_under t thread
    exit
    ;;
  *) echo "usage: csrc/tests/run.sh address|thread|none|aarch64|windows|python" >&2; exit 2 ;;
esac
if [ "$1" = aarch64 ]; then
  # In a fork of a process with threads, qemu 7.2 cannot start threads: an assertion of its own fails. 10 can.
  parts="kernels threads forks policy engine"
  case $(qemu-aarch64 --version) in
    *"version "[1-9][0-9].*) ;;
    *) parts="kernels threads policy engine" && echo "qemu older than 10: without forks" ;;
  esac
  for cpu in cortex-a72 neoverse-n1 max; do echo "$cpu"; done |
    xargs -P "$(nproc)" -I CPU sh -c 'log=$0-CPU.log
      qemu-aarch64 -cpu CPU -L /usr/aarch64-linux-gnu "$0" "$@" >"$log" 2>&1 || { cat "$log"; exit 1; }
      echo "qemu CPU: $(paste -s -d, "$log")"' "$folder/gitfast_native_test" $parts
elif [ "$1" = windows ]; then
  # Outside of the tree: what wine makes links to /, and setuptools would walk through that.
  WINEPREFIX=$(mktemp -d)
  trap '/usr/lib/wine/wineserver64 -k || true; rm -rf "$WINEPREFIX"' EXIT
  export WINEPREFIX WINEDEBUG=-all DISPLAY=
  /usr/lib/wine/wine64 "$folder/gitfast_native_test.exe"
  echo "left out: forks, which Windows does not have; kernels that this CPU does not run"
else
  "$folder/gitfast_native_test"
fi
