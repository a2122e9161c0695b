#!/bin/sh
# Builds native_test.cpp with a sanitizer and runs it: csrc/tests/run.sh address|thread|none
set -eu
cd "$(dirname "$0")/.."
sanitizer=${1:?usage: csrc/tests/run.sh address|thread|none}
case $sanitizer in
  address) flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer" ;;
  thread) flags="-fsanitize=thread" ;;
  none) flags="" ;;
  *) echo "unknown sanitizer: $sanitizer" >&2; exit 2 ;;
esac
out=../build/native_test-$sanitizer
mkdir -p "$out"
compile() {
  source=$1; shift
  # shellcheck disable=SC2086
  ${CMAKE_CXX_COMPILER_LAUNCHER:-} ${CXX:-c++} -std=c++17 -O1 -g -Wall -Wextra -Werror -ffp-contract=off $flags -I. "$@" \
    -c "$source" -o "$out/$(basename "$source").o"
}
rm -f "$out"/*.o
for source in cpu/cpus.cpp cpu/isa.cpp cpu/pack.cpp cpu/threads.cpp cpu/kernels_scalar.cpp tests/native_test.cpp; do
  compile "$source"
done
case $(uname -m) in
  x86_64)
    compile cpu/kernels_avx2.cpp -mavx2 -mfma -mf16c
    compile cpu/kernels_avx512.cpp -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
    ;;
esac
# shellcheck disable=SC2086
${CXX:-c++} $flags "$out"/*.o -o "$out/native_test" -pthread
"$out/native_test"
