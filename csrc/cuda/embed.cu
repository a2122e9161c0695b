// Word and position embeddings with LayerNorm: kernel and launch.
#include "cuda/embed.h"
#include "cuda/norm.h"

namespace gitfast::cuda {

void embed_layer_norm(const EmbedLayerNorm& args, CUstream_st* stream) {
  if (args.num_words < 1) throw Error("words: expected at least one row, got none");
  if (args.num_positions < 1) throw Error("positions: expected at least one row, got none");
  if (args.width < 1 || args.width > kMaxNormWidth)
    throw Error("words: expected rows of 1 to " + std::to_string(kMaxNormWidth) + " elements, got " +
                std::to_string(args.width));
  AddLayerNorm norm;
  norm.dtype = args.dtype;
  norm.device = args.device;
  norm.rows = args.rows;
  norm.width = args.width;
  norm.x = args.words;
  norm.x_index = args.ids;
  norm.x_rows = args.num_words;
  norm.x_stride = args.words_stride;
  norm.residual = args.positions;
  norm.residual_index = args.position_ids;
  norm.residual_rows = args.num_positions;
  norm.residual_stride = args.positions_stride;
  norm.gamma = args.gamma;
  norm.beta = args.beta;
  norm.out = args.out;
  norm.out_stride = args.out_stride;
  norm.eps = args.eps;
  norm.overlap = args.overlap;
  add_layer_norm(norm, stream);
}

}  // namespace gitfast::cuda
