// What a launch costs, a node of a graph with and without overlap, and a turn of a loop in a graph.
#pragma once

#include "probe.cuh"

namespace gpu_probe {

__global__ void empty_kernel() {}

__global__ void overlapping_kernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

__global__ void count_down_kernel(cudaGraphConditionalHandle again, int* left) {
  const int now = --*left;
  cudaGraphSetConditional(again, now > 0);
}

inline cudaGraphExec_t instantiated(cudaGraph_t graph) {
  cudaGraphExec_t made;
  check(cudaGraphInstantiate(&made, graph, 0), "cudaGraphInstantiate");
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  return made;
}

// So many kernels one after another; with `overlap` each may start while the one before still runs.
inline cudaGraphExec_t chain(Probe& probe, void (*kernel)(), bool overlap, int blocks, int nodes) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = configured(probe, blocks, &attribute, 0);
  config.numAttrs = overlap;
  check(cudaStreamBeginCapture(probe.stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  for (int i = 0; i < nodes; ++i) check(cudaLaunchKernelEx(&config, kernel), "launch into a graph");
  cudaGraph_t graph;
  check(cudaStreamEndCapture(probe.stream, &graph), "cudaStreamEndCapture");
  return instantiated(graph);
}

inline void graph_nodes(Probe& probe, const char* name, void (*kernel)(), bool overlap, int blocks) {
  constexpr int kFew = 20, kMany = 220;
  cudaGraphExec_t few = chain(probe, kernel, overlap, blocks, kFew),
                  many = chain(probe, kernel, overlap, blocks, kMany);
  std::string about = with(named(name), "overlap", int64_t{overlap});
  about = with(with(about, "blocks", int64_t{blocks}), "threads", int64_t{kThreads});
  probe.report.add(about, "us", probe.per_repeat(kFew, kMany, [&](int nodes) {
    check(cudaGraphLaunch(nodes == kFew ? few : many, probe.stream), "cudaGraphLaunch");
  }));
  check(cudaGraphExecDestroy(few), "cudaGraphExecDestroy");
  check(cudaGraphExecDestroy(many), "cudaGraphExecDestroy");
}

// A loop in a graph, of one kernel that says whether it goes on.
inline void while_node(Probe& probe) {
  cudaGraph_t graph;
  check(cudaGraphCreate(&graph, 0), "cudaGraphCreate");
  cudaGraphConditionalHandle again;
  check(cudaGraphConditionalHandleCreate(&again, graph, 1, cudaGraphCondAssignDefault), "conditional handle");
  cudaGraphNodeParams loop = {};
  loop.type = cudaGraphNodeTypeConditional;
  loop.conditional.handle = again;
  loop.conditional.type = cudaGraphCondTypeWhile;
  loop.conditional.size = 1;
  cudaGraphNode_t node;
#if CUDART_VERSION >= 13000
  check(cudaGraphAddNode(&node, graph, nullptr, nullptr, 0, &loop), "a conditional node");
#else
  check(cudaGraphAddNode(&node, graph, nullptr, 0, &loop), "a conditional node");
#endif
  int* left = reinterpret_cast<int*>(probe.scratch());
  void* arguments[] = {&again, &left};
  cudaKernelNodeParams kernel = {};
  kernel.func = reinterpret_cast<void*>(count_down_kernel);
  kernel.gridDim = kernel.blockDim = dim3(1);
  kernel.kernelParams = arguments;
  check(cudaGraphAddKernelNode(&node, loop.conditional.phGraph_out[0], nullptr, 0, &kernel), "a node of the body");
  cudaGraphExec_t made = instantiated(graph);
  probe.report.add(named("while_node_iteration"), "us", probe.per_repeat(100, 1100, [&](int rounds) {
    check(cudaMemcpyAsync(left, &rounds, sizeof rounds, cudaMemcpyHostToDevice, probe.stream), "cudaMemcpy");
    check(cudaGraphLaunch(made, probe.stream), "cudaGraphLaunch");
  }));
  check(cudaGraphExecDestroy(made), "cudaGraphExecDestroy");
}

inline void measure_launches(Probe& probe) {
  probe.report.add(named("launch"), "us", probe.per_repeat(100, 1100, [&](int count) {
    for (int i = 0; i < count; ++i) empty_kernel<<<1, 32, 0, probe.stream>>>();
  }));
  probe.report.add(named("launch_and_wait"), "us",
                   probe.host_times([&] { empty_kernel<<<1, 32, 0, probe.stream>>>(); }));
  cudaGraphExec_t graph = chain(probe, empty_kernel, false, 1, 1);
  probe.report.add(named("graph_launch_and_wait"), "us",
                   probe.host_times([&] { check(cudaGraphLaunch(graph, probe.stream), "cudaGraphLaunch"); }));
  check(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy");
}

inline void measure_graphs(Probe& probe) {
  for (int blocks : {1, 132}) {
    graph_nodes(probe, "graph_node", empty_kernel, false, blocks);
    graph_nodes(probe, "graph_node", overlapping_kernel, true, blocks);
  }
  while_node(probe);
}

}  // namespace gpu_probe
