// Lanes: crews of threads over one copy of the weights, each with a running batch.
#include "lanes.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <numeric>
#include <thread>
#include <utility>

#include "platform.h"
#include "policy.h"
#include "tensor.h"

namespace gitfast::cpu {
namespace {

// The cost of each row of text to a lane: its tokens, those to come included.
std::vector<int64_t> row_costs(const TextRows& rows, int64_t new_tokens) {
  std::vector<int64_t> costs;
  for (size_t r = 0; r < rows.count; ++r) costs.push_back(static_cast<int64_t>(rows.ids[r].size()) + new_tokens);
  return costs;
}

}  // namespace

// Threads that run parts of one call beside its own thread.
struct Lanes::Helpers {
  // Room for `parts`: once they are admitted, starting them needs no more.
  explicit Helpers(size_t parts) : errors(parts) {
    threads.reserve(parts);
    here.reserve(parts);
  }

  std::mutex mutex;
  std::condition_variable changed;
  size_t running = 0;
  std::shared_ptr<CancelFlag> abandoned = std::make_shared<CancelFlag>();  // a part failed: the others end
  std::vector<std::exception_ptr> errors;                                  // by part
  std::vector<std::thread> threads;
  std::vector<size_t> here;  // parts that run on the call's own thread, one after another

  void end(size_t part, std::exception_ptr error) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (error) {
      if (!abandoned->cancelled()) errors[part] = std::move(error);
      abandoned->cancel();
    }
    --running;
    changed.notify_one();
  }

  void join() {
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }
};

Lanes::Lanes(const TextModel& text, const ImageModel& images, const std::vector<ThreadPool*>& pools,
             RunningBatch::Stats& stats)
    : vision_width_(images.config.vision.hidden_size), vision_(images.config.vision), loads_(pools.size()) {
  for (ThreadPool* pool : pools)
    batches_.push_back(std::make_unique<RunningBatch>(
        TextModel{text.config, text.weights, text.kernels, *pool, text.quick_head},
        ImageModel{images.config, images.vision, images.decoder, images.kernels, *pool}, stats));
}

std::vector<std::vector<search::Result>> Lanes::generate(const TextRows& rows, const search::RulesPtr& rules,
                                                         const OnTokens& on_tokens, const Control& control) {
  const search::SearchOptions& options = search::options_of(*rules);
  std::vector<std::vector<search::Result>> results(rows.count);
  const int64_t width = std::max(options.num_beams, options.num_return_sequences);
  run(row_costs(rows, width * options.max_new_tokens), static_cast<bool>(on_tokens), control,
      [&](RunningBatch& batch, const Part& part, const Control& own) {
        auto found = batch.generate(rows.part(part.first, part.count), rules, on_tokens, own);
        std::move(found.begin(), found.end(), results.begin() + part.first);
      });
  return results;
}

std::vector<std::vector<float>> Lanes::score(const TextRows& rows, const Control& control) {
  std::vector<std::vector<float>> scores(rows.count);
  run(row_costs(rows, 0), false, control, [&](RunningBatch& batch, const Part& part, const Control& own) {
    auto found = batch.score(rows.part(part.first, part.count), own);
    std::move(found.begin(), found.end(), scores.begin() + part.first);
  });
  return scores;
}

Buffer Lanes::logits(const TextRows& rows, const Control& control) {
  Buffer out;
  run(row_costs(rows, 0), true, control,
      [&](RunningBatch& batch, const Part&, const Control& own) { out = batch.logits(rows, own); });
  return out;
}

std::vector<std::shared_ptr<Prefix>> Lanes::encode(const PixelBatch& pixels, const Control& control) {
  std::vector<std::shared_ptr<Prefix>> prefixes(static_cast<size_t>(pixels.images));
  const std::vector<int64_t> costs(prefixes.size(), pixels.frames * frame_tokens(vision_, pixels));
  run(costs, false, control, [&](RunningBatch& batch, const Part& part, const Control& own) {
    auto found = batch.encode(pixels.part(part.first, part.count), own);
    std::move(found.begin(), found.end(), prefixes.begin() + part.first);
  });
  return prefixes;
}

Buffer Lanes::features(const PixelBatch& pixels, const Control& control) {
  const int64_t tokens = pixels.frames * frame_tokens(vision_, pixels), floats = tokens * vision_width_;
  Buffer out = float_buffer(pixels.images * floats);
  run(std::vector<int64_t>(static_cast<size_t>(pixels.images), tokens), false, control,
      [&](RunningBatch& batch, const Part& part, const Control& own) {
        batch.features(pixels.part(part.first, part.count), out.floats() + part.first * floats, own);
      });
  return out;
}

// Runs a call: the first of its parts on this thread, each other on a thread of its own. Throws the error of the first
// part that failed, once all have ended.
void Lanes::run(const std::vector<int64_t>& costs, bool whole, const Control& control, const RunPart& run) {
  auto helpers = std::make_unique<Helpers>(whole ? 1 : batches_.size());
  const std::vector<Part> parts = admit(costs, whole);
  if (parts.size() == 1) return run_part(parts[0], control, run);
  helpers->running = parts.size();
  const auto run_one = [&, helpers = helpers.get()](size_t p, const Control& own) {
    std::exception_ptr error;
    try {
      run_part(parts[p], own, run);
    } catch (...) {
      error = std::current_exception();
    }
    if (fork_count() == forks_) helpers->end(p, error);
  };
  helpers->here.push_back(0);
  {
    const BlockedSignals blocked;
    for (size_t p = 1; p < parts.size(); ++p) try {
        helpers->threads.emplace_back(run_one, p, Control{control.cancel, nullptr, helpers->abandoned});
      } catch (const std::exception&) {  // no thread to be had, or no memory for it
        helpers->here.push_back(p);
      }
  }
  try {
    for (size_t p : helpers->here) {
      run_one(p, {control.cancel, control.poll, helpers->abandoned});
      check_process();
    }
    wait(*helpers, control);
  } catch (...) {
    if (fork_count() != forks_) {
      (void)helpers.release();  // its threads and locks are the parent's
      throw;
    }
    helpers->abandoned->cancel();
    helpers->join();
    throw;
  }
  helpers->join();
  for (const std::exception_ptr& error : helpers->errors)
    if (error) std::rethrow_exception(error);
}

void Lanes::run_part(const Part& part, const Control& control, const RunPart& run) {
  const auto done = [&] {
    if (fork_count() != forks_) return;  // the parent's lock
    const std::lock_guard<std::mutex> lock(mutex_);
    loads_[part.lane] -= part.work;
  };
  try {
    run(*batches_[part.lane], part, control);
  } catch (...) {
    done();
    throw;
  }
  done();
}

// Divides a call among the lanes; neighbours, who may share a prefix, stay together.
std::vector<Lanes::Part> Lanes::admit(const std::vector<int64_t>& costs, bool whole) {
  const auto items = static_cast<int64_t>(costs.size());
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Part> parts;
  if (whole || items <= 1 || loads_.size() == 1) {
    const auto least = std::min_element(loads_.begin(), loads_.end()) - loads_.begin();
    parts.push_back({static_cast<size_t>(least), 0, items, std::accumulate(costs.begin(), costs.end(), int64_t{0})});
  } else {
    const std::vector<int64_t> counts = spread(costs, loads_);
    int64_t first = 0;
    for (size_t lane = 0; lane < counts.size(); ++lane) {
      if (counts[lane] == 0) continue;
      const auto begin = costs.begin() + first;
      parts.push_back({lane, first, counts[lane], std::accumulate(begin, begin + counts[lane], int64_t{0})});
      first += counts[lane];
    }
  }
  for (const Part& part : parts) loads_[part.lane] += part.work;
  return parts;
}

void Lanes::wait(Helpers& helpers, const Control& control) const {
  std::unique_lock<std::mutex> lock(helpers.mutex);
  const auto ended = [&] { return helpers.running == 0; };
  if (!control.poll) return helpers.changed.wait(lock, ended);
  while (!helpers.changed.wait_for(lock, kPollInterval, ended)) {
    lock.unlock();
    control.poll();
    check_process();
    lock.lock();
  }
}

// Throws in a child that was forked by a poll.
void Lanes::check_process() const {
  if (fork_count() != forks_) throw Error("the call began before a fork, and goes on in the parent process alone");
}

}  // namespace gitfast::cpu
