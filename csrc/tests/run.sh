#!/bin/sh
# Builds and runs the native test program under a sanitizer, or its kernels for 64-bit ARM under qemu:
# csrc/tests/run.sh address|thread|none|aarch64
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/native-${1:-}
case ${1:-} in
  address) options=-DGITFAST_SANITIZE=address,undefined ;;
  thread) options=-DGITFAST_SANITIZE=thread ;;
  none) options= ;;
  aarch64) options=-DCMAKE_TOOLCHAIN_FILE=$root/csrc/tests/aarch64.cmake ;;
  *) echo "usage: csrc/tests/run.sh address|thread|none|aarch64" >&2; exit 2 ;;
esac
cmake -S "$root" -B "$build" -G Ninja -DGITFAST_BINDINGS=OFF -DGITFAST_CUDA=off -DGITFAST_WERROR=on $options >/dev/null
cmake --build "$build" --target gitfast_native_test
if [ "$1" = aarch64 ]; then
  for cpu in cortex-a72 neoverse-n1 max; do
    echo "qemu: $cpu"
    qemu-aarch64 -cpu "$cpu" -L /usr/aarch64-linux-gnu "$build/gitfast_native_test" kernels
  done
else
  "$build/gitfast_native_test"
fi
