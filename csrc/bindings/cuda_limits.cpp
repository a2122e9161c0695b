// _C.cuda_limits, in every build: what the CUDA kernels take at most, for those who choose between them.
#include <pybind11/stl.h>

#include "bindings.h"
#include "cuda/attention.h"
#include "cuda/linear.h"
#include "cuda/persistent.h"
#include "cuda/search.h"
#include "cuda/select.h"

namespace gitfast::bindings {

void bind_cuda_limits(pybind11::module_& m) {
  pybind11::module_ limits = m.def_submodule("cuda_limits", "What the CUDA kernels take at most.");
  limits.attr("MAX_BEAMS") = cuda::kMaxBeams;
  limits.attr("MAX_CHOICES") = cuda::kMaxChoices;
  limits.attr("MAX_SPLITS") = cuda::kMaxSplits;
  limits.attr("MAX_SPLIT_TILES") = cuda::kMaxSplitTiles;
  limits.attr("HEAD_DIMS") =
      pybind11::tuple(pybind11::cast(std::vector<int64_t>(std::begin(cuda::kHeadDims), std::end(cuda::kHeadDims))));
  limits.attr("INT8_HEAD_DIM") = cuda::kInt8HeadDim;
  limits.attr("NORM_LINEAR_ROWS") = cuda::kMaxNormLinearRows;
  limits.attr("NORM_LINEAR_WIDTH") = cuda::kMaxNormLinearWidth;
  limits.attr("SETTINGS_WORDS") = cuda::kSettings;
  limits.attr("FINISHED_BEAM_WORDS") = cuda::kFinishedBeam;
  limits.attr("PERSISTENT_ROWS") = cuda::kMaxDecodeRows;
  limits.attr("PERSISTENT_LAYERS") = cuda::kMaxDecodeLayers;
  limits.attr("PERSISTENT_HEAD_DIM") = cuda::kDecodeHeadDim;
  limits.attr("MAX_CLUSTER") = cuda::kMaxCluster;
}

}  // namespace gitfast::bindings
