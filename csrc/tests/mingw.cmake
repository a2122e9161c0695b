# Cross-compiles for Windows with Debian's g++-mingw-w64-x86-64-posix: cmake -DCMAKE_TOOLCHAIN_FILE=csrc/tests/mingw.cmake
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
