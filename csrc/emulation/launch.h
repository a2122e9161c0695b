// Grids of CUDA threads on the host: blocks one after another, those of a cluster or of a cooperative grid side by
// side.
//
// Side by side, every block goes on until all its threads wait, one block after another in the order of the settings;
// running ahead, until it waits for another block. So what one block does too early or too late is seen by the others.
#pragma once

#include "emulation/block.h"

namespace gitfast::emulation {

struct Geometry {
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;      // blocks along x that share a barrier and can reach each other's shared memory
  bool cooperative = false;  // all blocks are resident, and may wait for each other
};

inline void check_limits(const Geometry& g) {
  constexpr size_t kSharedOfHopper = 227 * 1024;
  constexpr unsigned kPortableCluster = 8;
  const size_t threads = size_t{g.block.x} * g.block.y * g.block.z;
  if (threads == 0 || threads > 1024 || g.block.z > 64)
    throw Fault("launch: " + std::to_string(threads) + " threads in a block");
  if (g.grid.x == 0 || g.grid.y == 0 || g.grid.z == 0 || g.grid.x > INT32_MAX || g.grid.y > 65535 || g.grid.z > 65535)
    throw Fault("launch: a grid of " + std::to_string(g.grid.x) + "x" + std::to_string(g.grid.y) + "x" +
                std::to_string(g.grid.z));
  if (g.shared_bytes > kSharedOfHopper)
    throw Fault("launch: " + std::to_string(g.shared_bytes) + " bytes of shared memory");
  if (g.cluster == 0 || g.cluster > kPortableCluster || g.grid.x % g.cluster)
    throw Fault("launch: clusters of " + std::to_string(g.cluster) + " blocks of " + std::to_string(g.grid.x));
}

struct Running {
  explicit Running(Block* block) { set_running(block); }
  ~Running() { set_running(nullptr); }
};

// Lets the clusters go on of which all threads have arrived.
inline bool release_clusters(const Neighbours& neighbours) {
  bool released = false;
  for (size_t first = 0; first < neighbours.blocks.size(); first += neighbours.cluster) {
    const auto begin = neighbours.blocks.begin() + static_cast<std::ptrdiff_t>(first);
    if (!std::all_of(begin, begin + neighbours.cluster, [&](Block* b) { return b->at_cluster_with(**begin); }))
      continue;
    std::for_each(begin, begin + neighbours.cluster, [](Block* b) { b->leave_cluster(); });
    released = true;
  }
  return released;
}

inline void run_side_by_side(Neighbours& neighbours) {
  std::vector<Block*> order = neighbours.blocks;
  if (settings.order == Order::reverse) std::reverse(order.begin(), order.end());
  std::mt19937 random(settings.seed);
  const auto done = [](const Block* block) { return block->done(); };
  while (!std::all_of(order.begin(), order.end(), done)) {
    if (settings.order == Order::shuffled || settings.order == Order::run_ahead)
      std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (Block* block : order) {
      const Running scope(block);
      while (block->advance()) {
        moved = true;
        if (settings.order != Order::run_ahead) break;
      }
    }
    if (release_clusters(neighbours) || moved) continue;
    // Threads that poll a value which will not come are told so, once: on a device they have a limit of their own.
    if (neighbours.hopeless) {
      const auto stuck = std::find_if_not(order.begin(), order.end(), done);
      throw Fault("deadlock: " + (*stuck)->describe());
    }
    neighbours.hopeless = true;
  }
  for (const Block* block : order)
    if (!block->left_alone()) throw Fault("a store to the shared memory of a block that has ended");
}

inline void launch(const std::function<void()>& kernel, const Geometry& geometry) {
  check_limits(geometry);
#ifdef __SANITIZE_THREAD__
  constexpr bool kReuse = false;  // the memory of a block would order it after the one before
#else
  constexpr bool kReuse = true;
#endif
  const dim3 grid = geometry.grid;
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  const size_t together = geometry.cooperative ? blocks : geometry.cluster;
  std::vector<std::unique_ptr<Block>> made;
  std::vector<std::unique_ptr<Neighbours>> groups;  // as long as the blocks: nothing orders one behind another
  for (size_t group = 0; group < blocks / together; ++group) {
    const size_t first = (settings.order == Order::reverse ? blocks / together - 1 - group : group) * together;
    if (made.empty() || !kReuse)
      for (size_t i = 0; i < together; ++i)
        made.push_back(std::make_unique<Block>(grid, geometry.block, geometry.shared_bytes, kernel));
    Neighbours& neighbours = *groups.emplace_back(std::make_unique<Neighbours>());
    neighbours.cluster = geometry.cluster;
    neighbours.meetings = std::vector<Meeting>(together / geometry.cluster);
    for (size_t i = 0; i < together; ++i) neighbours.blocks.push_back(made[made.size() - together + i].get());
    for (size_t i = 0; i < together; ++i) {
      const size_t n = first + i;
      neighbours.blocks[i]->start({static_cast<unsigned>(n % grid.x), static_cast<unsigned>(n / grid.x % grid.y),
                                   static_cast<unsigned>(n / (size_t{grid.x} * grid.y))},
                                  neighbours, i);
    }
    run_side_by_side(neighbours);
  }
  for (const auto& block : made) block->join();
}

}  // namespace gitfast::emulation
