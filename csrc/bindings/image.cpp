// Bindings of the resampling of pictures, from decoded bytes to the pixels of a model.
#include <pybind11/numpy.h>

#include <string>

#include "arrays.h"
#include "bindings.h"
#include "gil.h"
#include "image/resample.h"

namespace gitfast::bindings {
namespace {

using image::Filter;
using image::Picture;
using image::Target;

// The structure of Apache Arrow's C data interface, in which Pillow hands out the memory of a picture.
struct ArrowArray {
  int64_t length, null_count, offset, n_buffers, n_children;
  const void** buffers;
  ArrowArray** children;
  ArrowArray* dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};

// `pixels`: uint8 (H, W, 3), or the capsule of an Arrow array of lists of four bytes, one for each of H * W pixels.
// H and W are below 2^31.
Picture picture_of(const py::object& pixels, int64_t width, int64_t height) {
  if (!PyCapsule_CheckExact(pixels.ptr())) {
    const py::array array = as_array(pixels, "pixels");
    const TensorView view = view_of(array, "pixels");
    Check(view, "pixels").dtype(DType::u8).contiguous();
    if (view.ndim != 3 || view.shape[0] != height || view.shape[1] != width || view.shape[2] != 3)
      throw Error("pixels: expected (" + std::to_string(height) + ", " + std::to_string(width) + ", 3)");
    return {view.ptr<uint8_t>(), width, height, 3, width * 3};
  }
  const auto* array = static_cast<ArrowArray*>(PyCapsule_GetPointer(pixels.ptr(), "arrow_array"));
  if (!array) throw py::error_already_set();
  const ArrowArray* bytes = array->release && array->n_children == 1 ? array->children[0] : nullptr;
  if (!bytes || array->offset || bytes->offset || bytes->n_buffers != 2 || array->length != width * height ||
      bytes->length % 4 || bytes->length / 4 != width * height)
    throw Error("pixels: expected four bytes for each of " + std::to_string(width) + " x " + std::to_string(height) +
                " pixels");
  return {static_cast<const uint8_t*>(bytes->buffers[1]), width, height, 4, width * 4};
}

Filter filter_named(const std::string& name) {
  if (name == "box") return Filter::box;
  if (name == "bilinear") return Filter::bilinear;
  if (name == "bicubic") return Filter::bicubic;
  throw Error("filter: expected box, bilinear or bicubic, got '" + name + "'");
}

using Pair = std::pair<int64_t, int64_t>;

py::array resample(const py::object& pixels, Pair size, Pair resized, const std::string& filter, Pair start, Pair crop,
                   const py::object& values) {
  const Target target{filter_named(filter), resized.first, resized.second, start.first,
                      start.second,         crop.first,    crop.second};
  constexpr int64_t kMost = int64_t{1} << 31;  // Pillow's too: products of these fit everywhere
  for (int64_t edge : {size.first, size.second, target.width, target.height, target.crop_height, target.crop_width})
    if (edge < 1 || edge >= kMost) throw Error("sizes: expected pixels from 1 to 2147483647");
  for (int64_t edge : {target.top, target.left})
    if (edge <= -kMost || edge >= kMost) throw Error("start: expected less than 2147483647");
  const Picture picture = picture_of(pixels, size.first, size.second);
  if (values.is_none()) {
    py::array_t<uint8_t> out({target.crop_height, target.crop_width, int64_t{3}});
    uint8_t* data = out.mutable_data();
    const WithoutGil released;
    image::resample(picture, target, data);
    return out;
  }
  const TensorView table = floats(as_array(values, "values"), "values");
  if (table.numel() != 3 * 256) throw Error("values: expected (3, 256)");
  py::array_t<float> out({int64_t{3}, target.crop_height, target.crop_width});
  float* data = out.mutable_data();
  const WithoutGil released;
  image::resample(picture, target, table.ptr<float>(), data);
  return out;
}

}  // namespace

void bind_image(py::module_& m) {
  using py::arg;
  m.def("resample", resample, arg("pixels"), arg("size"), arg("resized"), arg("filter"), arg("start"), arg("crop"),
        arg("values"));
}

}  // namespace gitfast::bindings
