// Giving the GIL away during native work, and having it back for a while.
//
// A daemon thread that comes back while the interpreter ends never gets it: CPython before 3.14 ends such a thread by
// unwinding its stack (pthread_exit), which aborts the process at the first destructor that must not throw. Here it
// sleeps instead, until the process is gone; it holds no lock that others wait for.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace gitfast::bindings {

[[noreturn]] inline void sleep_until_exit() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

inline bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030d0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Without the GIL from construction to destruction, but for what runs in `with_gil`.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() { take(); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

  // On the thread that made this.
  template <class Fn>
  void with_gil(const Fn& fn) {
    take();
    try {
      fn();
#if defined(__GLIBCXX__)
    } catch (abi::__forced_unwind&) {  // the interpreter ended while Python code ran in `fn`
      sleep_until_exit();
#endif
    } catch (...) {
      state_ = PyEval_SaveThread();
      throw;
    }
    state_ = PyEval_SaveThread();
  }

 private:
  void take() {
    if (interpreter_ends()) sleep_until_exit();
#if defined(__GLIBCXX__)
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {  // it ended between the two lines
      sleep_until_exit();
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }

  PyThreadState* state_;
};

}  // namespace gitfast::bindings
