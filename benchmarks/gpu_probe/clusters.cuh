// How many large clusters run at once, and whether a grid of them may be launched cooperatively.
#pragma once

#include "meetings.cuh"

namespace gpu_probe {

// Tries whether a grid of clusters may be launched cooperatively: both barriers, once.
__global__ void __launch_bounds__(kThreads) meet_both_kernel() {
  cg::this_cluster().sync();
  cg::this_grid().sync();
}

inline void measure_clusters(Probe& probe) {
  for (int cluster : {8, 16})
    for (int kilobytes : {100, 200, 220}) {
      const std::string about =
          with(with(named("active_clusters"), "cluster", cluster), "shared_kB", int64_t{kilobytes});
      cudaLaunchAttribute attribute = cluster_of(cluster);
      cudaLaunchConfig_t config = configured(probe, cluster, &attribute, kilobytes * 1024);
      cudaError_t status = allow(meet_kernel<Way::cluster>, cluster, kilobytes * 1024);
      int count = 0;
      if (status == cudaSuccess) status = cudaOccupancyMaxActiveClusters(&count, meet_kernel<Way::cluster>, &config);
      status == cudaSuccess ? probe.report.add_number(about, "clusters", count) : probe.report.add_error(about, status);
    }
  cudaLaunchAttribute attributes[2] = {cluster_of(8), {}};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  constexpr int kShared = 210 * 1024, kClusters = 12;  // as the persistent kernel is launched
  cudaLaunchConfig_t config = configured(probe, 8 * kClusters, attributes, kShared);
  config.numAttrs = 2;
  cudaError_t status = allow(meet_both_kernel, 8, kShared);
  if (status == cudaSuccess) status = cudaLaunchKernelEx(&config, meet_both_kernel);
  if (status == cudaSuccess) status = cudaStreamSynchronize(probe.stream);
  std::string about = with(with(named("cooperative_launch_of_clusters"), "cluster", int64_t{8}), "clusters", kClusters);
  about = with(about, "shared_bytes", kShared);
  status == cudaSuccess ? probe.report.add_number(about, "possible", 1) : probe.report.add_error(about, status);
}

}  // namespace gpu_probe
