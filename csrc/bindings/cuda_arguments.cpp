// Arguments of the CUDA kernels read by name and checked, one kind of array each.
#include "cuda_arguments.h"

namespace gitfast::bindings {

Arguments::Arguments(Device kind, const py::dict& given, const char* first) : given_(given), kind_(kind) {
  const TensorView& view = array(first).view();
  dtype_ = view.dtype;
  device_ = view.device_index;
}

bool Arguments::has(const std::string& name) const {
  read_.insert(name);
  return given_.contains(name) && !given_[name.c_str()].is_none();
}

bool Arguments::has_all_or_none(std::initializer_list<const char*> names) const {
  size_t given = 0;
  std::string all;
  for (const char* name : names) {
    given += has(name);
    all += (all.empty() ? "" : ", ") + std::string(name);
  }
  if (given != 0 && given != names.size()) throw Error(all + ": expected all or none of them");
  return given != 0;
}

py::object Arguments::get(const std::string& name) {
  if (!has(name)) throw Error(name + ": expected a value, got none");
  return given_[name.c_str()].cast<py::object>();
}

const Array& Arguments::array(const std::string& name) {
  for (const auto& kept : kept_)
    if (kept->name == name) return *kept->array;
  auto kept = std::make_unique<Kept>();
  kept->name = name;
  kept->array = std::make_unique<Array>(get(name), kept->name.c_str());
  return *kept_.emplace_back(std::move(kept))->array;
}

const Array& Arguments::checked(const std::string& name, DType dtype, std::initializer_list<Dim*> shape) {
  const Array& array = this->array(name);
  array.check().device(kind_).dtype(dtype).shape(shape);
  if (array.view().device_index != device_)
    throw Error(name + ": expected a tensor of CUDA device " + std::to_string(device_) + ", got device " +
                std::to_string(array.view().device_index));
  return array;
}

void* Arguments::dense(const std::string& name, DType dtype, std::initializer_list<Dim*> shape) {
  const Array& array = checked(name, dtype, shape);
  array.check().contiguous();
  return array.view().data;
}

int32_t* Arguments::host_ints(const std::string& name, std::initializer_list<Dim*> shape) {
  const Array& array = this->array(name);
  array.check().device(Device::cpu).dtype(DType::i32).shape(shape).contiguous();
  return array.view().ptr<int32_t>();
}

void* Arguments::rows(const std::string& name, Dim& count, Dim& extent, int64_t& stride) {
  const TensorView& view = checked(name, dtype_, {&count, &extent}).view();
  if (view.shape[1] > 1 && view.strides[1] != 1) throw Error(name + ": the elements of a row are strided");
  stride = view.strides[0];
  return view.data;
}

void* Arguments::rows_out(const std::string& name, Dim& count, Dim& extent, int64_t& stride) {
  void* data = rows(name, count, extent, stride);
  if (count.value > 1 && stride < extent.value) throw Error(name + ": its rows overlap");
  return data;
}

void* Arguments::head_rows(const std::string& name, Dim& R, Dim& H, Dim& head_dim, int64_t& stride) {
  const TensorView& view = checked(name, dtype_, {&R, &H, &head_dim}).view();
  if (view.strides[2] != 1 || (view.shape[1] > 1 && view.strides[1] != view.shape[2]))
    throw Error(name + ": the elements of a row are strided");
  stride = view.strides[0];
  return view.data;
}

void Arguments::finish() const {
  for (const auto& item : given_) {
    const auto name = item.first.cast<std::string>();
    if (!read_.count(name)) throw Error(name + ": no such argument");
  }
}

}  // namespace gitfast::bindings
