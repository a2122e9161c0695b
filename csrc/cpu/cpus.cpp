// The number of threads to use: the argument, the environment, or what the machine and its cgroups grant.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>

#include "platform.h"
#include "tensor.h"
#include "threads.h"

namespace gitfast::cpu {
namespace {

constexpr int kThreadsPerLane = 16;
constexpr int kNoQuota = std::numeric_limits<int>::max();

int whole_cpus(double quota, double period) {
  if (!(quota > 0) || !(period > 0)) return kNoQuota;
  return std::max(1, static_cast<int>(std::ceil(std::min(quota / period, 1e6))));
}

// The quota files of one cgroup folder, version 2 and version 1; an unreadable file is no quota.
int quota_of(const std::string& folder) {
  double quota = 0, period = 0;
  if (std::ifstream file(folder + "/cpu.max"); file >> quota >> period) return whole_cpus(quota, period);
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period) return whole_cpus(quota, period);
  return kNoQuota;
}

std::string range_text() { return "expected a whole number from 1 to " + std::to_string(kMaxThreads); }

}  // namespace

int cgroup_cpus(const std::string& membership, const std::string& root) {
  int cpus = quota_of(root);
  std::ifstream file(membership);
  // Lines of hierarchy:controllers:path; version 2 has no controllers. Every ancestor's quota binds.
  for (std::string hierarchy, controllers, path; std::getline(file, hierarchy, ':');) {
    if (!std::getline(file, controllers, ':') || !std::getline(file, path)) break;
    std::string mount = root;
    if (!controllers.empty()) {
      if (("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
      mount += "/cpu";
    }
    for (; !path.empty(); path.erase(path.find_last_of('/'))) {
      if (path.front() != '/') break;
      cpus = std::min(cpus, quota_of(mount + path));
    }
    cpus = std::min(cpus, quota_of(mount));
  }
  return cpus;
}

int default_lanes(int threads) { return std::max(1, threads / kThreadsPerLane); }

Crews choose_crews(int lanes, int threads) {
  if (lanes < 0 || lanes > kMaxThreads)
    throw Error("num_lanes: " + range_text() + " (or 0 to choose), got " + std::to_string(lanes));
  const int chosen = choose_num_threads(threads);
  if (lanes == 0) lanes = threads > 0 ? 1 : default_lanes(chosen);
  if (threads == 0) threads = std::max(1, chosen / lanes);
  if (lanes > kMaxThreads / threads)
    throw Error("num_lanes, num_threads: expected at most " + std::to_string(kMaxThreads) + " threads in all, got " +
                std::to_string(lanes) + " lanes of " + std::to_string(threads));
  return {lanes, threads};
}

int usable_cpus() { return std::min({affinity_cpus(), cgroup_cpus(), kMaxThreads}); }

int choose_num_threads(int requested) {
  if (requested < 0 || requested > kMaxThreads)
    throw Error("num_threads: " + range_text() + " (or 0 to choose), got " + std::to_string(requested));
  if (requested > 0) return requested;
  const char* variable = std::getenv("GITFAST_NUM_THREADS");
  if (!variable || !*variable) return usable_cpus();
  char* end = nullptr;
  const long value = std::strtol(variable, &end, 10);
  if (*end || value < 1 || value > kMaxThreads)
    throw Error("GITFAST_NUM_THREADS: " + range_text() + ", got '" + variable + "'");
  return static_cast<int>(value);
}

}  // namespace gitfast::cpu
