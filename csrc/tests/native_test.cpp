// The kernels, the thread pool and the running batch without Python, for the sanitizers: csrc/tests/run.sh runs this
// under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer. Numbers are compared in tests/cpu;
// here every array has its exact size, outputs start as NaN, and threads meet in as many ways as they can.
#include "tests/native_test.h"

// With an argument, the kernels alone: emulators of processors do not fork with threads.
int main(int argc, char**) {
  std::setvbuf(stdout, nullptr, _IONBF, 0);  // what was begun is seen, whatever becomes of it
  gitfast::cpu::test_all_kernels();
  if (argc == 1) {
    gitfast::cpu::test_thread_pool();
    gitfast::cpu::test_policy();
    gitfast::cpu::test_engine();
  }
  std::printf("passed\n");
}
