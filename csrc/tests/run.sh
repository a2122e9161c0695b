#!/bin/sh
# Builds and runs the native test program under a sanitizer: csrc/tests/run.sh address|thread|none
set -eu
case ${1:-} in
  address) sanitize=address,undefined ;;
  thread) sanitize=thread ;;
  none) sanitize= ;;
  *) echo "usage: csrc/tests/run.sh address|thread|none" >&2; exit 2 ;;
esac
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/native-$1
cmake -S "$root" -B "$build" -G Ninja -DGITFAST_BINDINGS=OFF -DGITFAST_CUDA=off -DGITFAST_SANITIZE="$sanitize" >/dev/null
cmake --build "$build" --target gitfast_native_test
"$build/gitfast_native_test"
