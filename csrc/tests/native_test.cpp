// The kernels, the thread pool and the running batch without Python, for the sanitizers: csrc/tests/run.sh runs this
// under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer. Numbers are compared in tests/cpu;
// here every array has its exact size, outputs start as NaN, and threads meet in as many ways as they can.
#include "tests/native_test.h"

#include <algorithm>
#include <string>

namespace {

constexpr struct {
  const char* name;
  void (*test)();
} kParts[] = {
    {"kernels", gitfast::cpu::test_all_kernels}, {"threads", gitfast::cpu::test_thread_pool},
    {"forks", gitfast::cpu::test_forks},         {"policy", gitfast::cpu::test_policy},
    {"engine", gitfast::cpu::test_engine},
};

}  // namespace

// The parts that are named, or all.
int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IONBF, 0);  // what was begun is seen, whatever becomes of it
  const std::vector<std::string> named(argv + 1, argv + argc);
  for (const std::string& name : named)
    EXPECT(std::any_of(std::begin(kParts), std::end(kParts), [&](const auto& part) { return part.name == name; }));
  for (const auto& part : kParts)
    if (named.empty() || std::find(named.begin(), named.end(), part.name) != named.end()) part.test();
  std::printf("passed\n");
}
