// Measures what decides the design of a low-latency decode: how fast blocks tell each other something, what a node of a
// graph and a launch cost, how fast memory and caches are read in several ways, and how many large clusters run at
// once. A file of gpu_probe/ for each.
//
//     nvcc -arch=sm_90a -std=c++17 -O3 -o gpu_probe benchmarks/gpu_probe.cu && ./gpu_probe [FILE]
//
// Adds lines of JSON to FILE as they come, so that whatever ends the program leaves what was measured: the device, then
// one row per measurement with its unit, the median and the extremes of kRounds samples; a row that cannot be measured
// says why. Repeated work is timed at two lengths, so that launches cancel. Waits of blocks for others
// give up after kMostPolls; those inside grid.sync and cluster barriers end because their blocks run together, which
// the launch makes sure of. For compute capability 9.0 and later.
#include "gpu_probe/clusters.cuh"
#include "gpu_probe/launches.cuh"
#include "gpu_probe/meetings.cuh"
#include "gpu_probe/reads.cuh"

int main(int argc, char** argv) {
  using namespace gpu_probe;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0)
    fail(std::string("needs a GPU: ") + (status == cudaSuccess ? "there is none" : cudaGetErrorString(status)));
  std::FILE* file = argc > 1 ? std::fopen(argv[1], "a") : nullptr;
  if (argc > 1 && !file) fail(std::string("cannot write ") + argv[1]);
  Probe probe(file);
  measure_launches(probe);
  measure_meetings(probe);
  measure_graphs(probe);
  measure_clusters(probe);
  measure_reads(probe);
  return 0;
}
