// TensorView: a typed, shaped view of memory that someone else owns, and the checks every entry point runs on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace gitfast {

enum class DType : uint8_t { f32, f16, bf16, i8, u8, i32, i64 };
enum class Device : uint8_t { cpu, cuda };

inline const char* dtype_name(DType t) {
  static constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64"};
  return kNames[static_cast<int>(t)];
}

inline size_t dtype_size(DType t) {
  static constexpr size_t kSizes[] = {4, 2, 2, 1, 1, 4, 8};
  return kSizes[static_cast<int>(t)];
}

// Bad input: becomes ValueError in Python.
struct Error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct TensorView {
  static constexpr int kMaxDims = 8;

  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  int device_index = 0;
  int ndim = 0;
  int64_t shape[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // in elements

  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
  bool contiguous() const {
    if (numel() == 0) return true;
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }
  template <class T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
};

// Throws Error unless the sizes and strides are such as one memory can have: afterwards the product of any sizes, and
// that of a few of them with a small number, and the offset in bytes of any element fit int64_t.
inline void check_layout(const TensorView& t, const char* name) {
  constexpr int64_t kMaxElements = int64_t{1} << 48, kMaxReach = int64_t{1} << 60;
  int64_t elements = 1, reach = 0;
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] < 0)
      throw Error(std::string(name) + ": expected sizes of 0 or more, got " + std::to_string(t.shape[i]));
    if (t.shape[i] <= 1) continue;
    if (t.shape[i] > kMaxElements / elements) throw Error(std::string(name) + ": more elements than memory can hold");
    elements *= t.shape[i];
    if (t.strides[i] == 0) continue;
    const int64_t limit = (kMaxReach - reach) / (t.shape[i] - 1);
    if (t.strides[i] > limit || t.strides[i] < -limit)
      throw Error(std::string(name) + ": strides that reach further than memory does");
    reach += (t.shape[i] - 1) * (t.strides[i] < 0 ? -t.strides[i] : t.strides[i]);
  }
}

// A named dimension: unbound until the first tensor that uses it is checked, then compared.
struct Dim {
  explicit Dim(const char* name) : name(name) {}
  Dim(int64_t value) : value(value) {}  // NOLINT: a literal extent is a dimension too
  const char* name = nullptr;
  int64_t value = -1;
};

// Check(q, "q").dtype(DType::f32).shape({&R, &H, &D}).contiguous(): the first violation throws Error with
// "q: expected shape (R=4, H, 64), got (4, 12, 80)".
class Check {
 public:
  Check(const TensorView& t, const char* name) : t_(t), name_(name) {}

  const Check& dtype(DType want) const {
    if (t_.dtype != want)
      throw Error(std::string(name_) + ": expected dtype " + dtype_name(want) + ", got " + dtype_name(t_.dtype));
    return *this;
  }
  const Check& device(Device want) const {
    if (t_.device != want)
      throw Error(std::string(name_) + ": expected a " + (want == Device::cpu ? "CPU" : "CUDA") + " tensor");
    return *this;
  }
  const Check& shape(std::initializer_list<Dim*> dims) const {
    bool ok = static_cast<int>(dims.size()) == t_.ndim;
    int i = 0;
    for (Dim* d : dims) {
      if (!ok) break;
      if (d->value >= 0 && d->value != t_.shape[i]) ok = false;
      ++i;
    }
    if (!ok) throw Error(std::string(name_) + ": expected shape " + describe(dims) + ", got " + shape_text());
    i = 0;
    for (Dim* d : dims) d->value = t_.shape[i++];
    return *this;
  }
  const Check& contiguous() const {
    if (!t_.contiguous()) throw Error(std::string(name_) + ": expected a C-contiguous array");
    return *this;
  }

 private:
  static std::string describe(std::initializer_list<Dim*> dims) {
    std::string s = "(";
    for (Dim* d : dims) {
      if (s.size() > 1) s += ", ";
      if (d->name) s += d->name;
      if (d->name && d->value >= 0) s += "=";
      if (d->value >= 0) s += std::to_string(d->value);
    }
    return s + (dims.size() == 1 ? ",)" : ")");
  }
  std::string shape_text() const {
    std::string s = "(";
    for (int i = 0; i < t_.ndim; ++i) s += (i ? ", " : "") + std::to_string(t_.shape[i]);
    return s + (t_.ndim == 1 ? ",)" : ")");
  }

  const TensorView& t_;
  const char* name_;
};

}  // namespace gitfast
