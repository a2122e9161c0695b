// Work shared by concurrent calls: whoever waits runs the next step, or slice of an encoding, for all.
#include "running_batch.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <string>

#include "tensor.h"

namespace gitfast::cpu {
namespace {

// Image tokens that are encoded together keep all threads busy: so many for each, within these bounds, the upper one
// for memory's sake. A single image may have more.
constexpr int64_t kFewestTokens = 512, kTokensPerThread = 128, kMostTokens = 2048;
constexpr double kNewest = 0.5;  // the weight of the last measurement

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }
int64_t nanoseconds(Clock::duration d) { return std::chrono::duration_cast<std::chrono::nanoseconds>(d).count(); }

void average(double& mean, double value) { mean = mean == 0 ? value : mean + kNewest * (value - mean); }

bool same_shape(const PixelBatch& a, const PixelBatch& b) {
  return a.frames == b.frames && a.height == b.height && a.width == b.width && a.temporal == b.temporal;
}

// A single row's result as it was after `count` tokens.
void truncate(search::Result& result, size_t count) {
  if (count >= result.tokens.size()) return;
  result.tokens.resize(count);
  result.logprobs.resize(count);
  result.score = std::accumulate(result.logprobs.begin(), result.logprobs.end(), 0.0);
  result.reason = search::FinishReason::length;
}

}  // namespace

struct RunningBatch::Call {
  explicit Call(const Control& control) : control(control) {}
  virtual ~Call() = default;

  virtual bool has_news() const { return false; }
  // Tells the caller of them, with the mutex free; afterwards `settle` has it again.
  virtual void tell() {}
  virtual void settle(RunningBatch&) {}
  virtual bool listens() const { return false; }

  bool ended() const { return left == 0 || error; }

  const Control& control;
  size_t left = 0;  // rows or images without a result
  std::exception_ptr error;
  std::condition_variable changed;
  bool waits = false;
  Clock::time_point polled = Clock::now();
};

struct RunningBatch::TextCall : Call {
  TextCall(const Control& control, const char* name, const TextRows& text)
      : Call(control), name(name), first(text.first), rows(text.count) {
    left = text.count;
  }

  struct Row {
    Decoding::Handle handle = 0;
    bool stopped = false;  // by its callback
    bool refused = false;  // the same, before `settle`; it and `told` are the calling thread's
    size_t told = 0;       // tokens
    Decoding::Event last;
  };
  struct News {
    size_t row;
    std::vector<int32_t> tokens;
  };

  bool has_news() const override { return !news.empty(); }
  bool listens() const override { return static_cast<bool>(on_tokens); }

  void tell() override {
    for (; !telling.empty(); telling.pop_front()) {
      Row& row = rows[telling.front().row];
      if (row.refused) continue;
      const std::vector<int32_t>& tokens = telling.front().tokens;
      row.told += tokens.size();
      if (!on_tokens(static_cast<int32_t>(telling.front().row), tokens)) row.refused = true;
    }
  }

  void settle(RunningBatch& batch) override {
    for (Row& row : rows) {
      row.stopped = row.refused;
      if (row.stopped && row.handle) batch.stops_.push_back(row.handle);
    }
  }

  const char* name;    // of the argument that holds the rows
  const size_t first;  // place of the first row there
  Add add;
  OnTokens on_tokens;
  bool single = true;  // each row's tokens are final when they come
  std::vector<Row> rows;
  std::deque<News> news, telling;
};

struct RunningBatch::ImageCall : Call {
  ImageCall(const Control& control, const PixelBatch& pixels, Encoding::Output output)
      : Call(control), pixels(pixels), output(output) {
    left = static_cast<size_t>(pixels.images);
  }

  int64_t waiting() const { return pixels.images - next; }

  const PixelBatch pixels;
  const Encoding::Output output;
  int64_t next = 0;  // image that no encoding has begun
  std::vector<std::shared_ptr<Prefix>> prefixes;
  float* features = nullptr;
};

RunningBatch::RunningBatch(const TextModel& text, const ImageModel& images, Stats& stats)
    : text_model_(text), image_model_(images), stats_(stats), decoding_(text), stepped_(Clock::now()) {}

std::vector<std::vector<search::Result>> RunningBatch::generate(const TextRows& rows, const search::RulesPtr& rules,
                                                                const OnTokens& on_tokens, const Control& control) {
  const search::SearchOptions& options = search::options_of(*rules);
  TextCall call(control, "prompts", rows);
  call.on_tokens = on_tokens;
  call.single = options.num_beams == 1 && options.num_return_sequences == 1;
  call.add = [&](size_t r) { return decoding_.generate(rows.prefixes[r], rows.ids[r], rules); };
  run(call);
  std::vector<std::vector<search::Result>> results;
  for (TextCall::Row& row : call.rows) {
    results.push_back(std::move(row.last.results));
    if (row.stopped && call.single) truncate(results.back()[0], row.told);
  }
  return results;
}

std::vector<std::vector<float>> RunningBatch::score(const TextRows& rows, const Control& control) {
  TextCall call(control, "sequences", rows);
  call.add = [&](size_t r) { return decoding_.score(rows.prefixes[r], rows.ids[r]); };
  run(call);
  std::vector<std::vector<float>> scores;
  for (TextCall::Row& row : call.rows) scores.push_back(std::move(row.last.scores));
  return scores;
}

Buffer RunningBatch::logits(const TextRows& rows, const Control& control) {
  std::vector<int64_t> firsts{0};
  for (size_t r = 0; r < rows.count; ++r) firsts.push_back(firsts.back() + static_cast<int64_t>(rows.ids[r].size()));
  const auto out = std::make_shared<Buffer>(float_buffer(firsts.back() * text_model_.config.vocab_size));
  TextCall call(control, "sequences", rows);
  call.add = [&](size_t r) { return decoding_.logits(rows.prefixes[r], rows.ids[r], out, firsts[r]); };
  run(call);
  return std::move(*out);
}

std::vector<std::shared_ptr<Prefix>> RunningBatch::encode(const PixelBatch& pixels, const Control& control) {
  ImageCall call(control, pixels, Encoding::Output::prefixes);
  call.prefixes.resize(static_cast<size_t>(pixels.images));
  run(call);
  return std::move(call.prefixes);
}

void RunningBatch::features(const PixelBatch& pixels, float* out, const Control& control) {
  ImageCall call(control, pixels, Encoding::Output::features);
  call.features = out;
  run(call);
}

// Runs a call to its end, together with what others bring.
void RunningBatch::run(Call& call) {
  if (call.ended()) return;
  Lock lock(mutex_);
  calls_.push_back(&call);
  try {
    if (auto* text = dynamic_cast<TextCall*>(&call)) text_arrivals_.push_back(text);
    if (auto* images = dynamic_cast<ImageCall*>(&call)) image_calls_.push_back(images);
    while (!call.ended() || (call.has_news() && !call.error)) {
      if (call.has_news()) {
        auto& text = static_cast<TextCall&>(call);
        text.telling.swap(text.news);
        hand_on();
        lock.unlock();
        text.tell();
        if (fork_count() != forks_)
          throw Error("the call began before a fork, and goes on in the parent process alone");
        lock.lock();
        text.settle(*this);
      } else if (call.control.poll && Clock::now() - call.polled >= kPollInterval) {
        poll(call, lock);
      } else if (!leading_) {
        lead(lock);
      } else {
        wait(call, lock);
      }
    }
  } catch (...) {
    if (fork_count() != forks_) throw;  // the parent's lock, and all it guards, are out of reach
    if (!lock.owns_lock()) lock.lock();
    leave(call);
    throw;
  }
  leave(call);
  if (call.error) std::rethrow_exception(call.error);
}

void RunningBatch::wait(Call& call, Lock& lock) {
  call.waits = true;
  if (call.control.poll)
    call.changed.wait_for(lock, kPollInterval);
  else
    call.changed.wait(lock);
  call.waits = false;
}

void RunningBatch::poll(Call& call, Lock& lock) {
  hand_on();
  lock.unlock();
  call.control.poll();
  if (fork_count() != forks_) throw Error("the call began before a fork, and goes on in the parent process alone");
  lock.lock();
  call.polled = Clock::now();
}

void RunningBatch::leave(Call& call) {
  withdraw(call);
  calls_.erase(std::find(calls_.begin(), calls_.end(), &call));
  if (calls_.empty())
    let_go();
  else
    hand_on();
}

// There is nobody to come to what the last call leaves behind: it must not keep memory until the next one.
void RunningBatch::let_go() {
  for (Decoding::Handle handle : departures_) decoding_.cancel(handle);
  departures_.clear();
  stops_.clear();
  encoding_.reset();
  encoding_for_.clear();
}

// Nothing will refer to the call again but `calls_`.
void RunningBatch::withdraw(Call& call) {
  if (auto* text = dynamic_cast<TextCall*>(&call)) {
    text_arrivals_.erase(std::remove(text_arrivals_.begin(), text_arrivals_.end(), text), text_arrivals_.end());
    for (TextCall::Row& row : text->rows) {
      if (!row.handle) continue;
      owners_.erase(row.handle);
      departures_.push_back(std::exchange(row.handle, 0));
    }
  }
  if (auto* images = dynamic_cast<ImageCall*>(&call)) {
    image_calls_.erase(std::remove(image_calls_.begin(), image_calls_.end(), images), image_calls_.end());
    for (auto& [owner, index] : encoding_for_)
      if (owner == images) owner = nullptr;
  }
}

void RunningBatch::end(Call& call, std::exception_ptr error) {
  if (!call.error) call.error = std::move(error);
  withdraw(call);
  wake(call);
}

void RunningBatch::wake(Call& call) {
  if (call.waits) call.changed.notify_one();
}

// The calling thread will not lead now: if there is anything to do, one that waits does it. If none waits, they are all
// about to come back.
void RunningBatch::hand_on() {
  if (leading_ || !has_work()) return;
  Call* chosen = nullptr;
  for (Call* call : calls_)
    if (call->waits && (!chosen || (chosen->listens() && !call->listens()))) chosen = call;
  if (chosen) chosen->changed.notify_one();
}

bool RunningBatch::has_work() const {
  return !text_arrivals_.empty() || !image_calls_.empty() || !departures_.empty() || !stops_.empty() ||
         !decoding_.empty() || encoding_;
}

// One step or slice for all. Does not throw: what goes wrong ends the calls that it concerns.
void RunningBatch::lead(Lock& lock) {
  leading_ = true;
  end_cancelled();
  apply_changes();
  switch (next_action(work(Clock::now()))) {
    case Action::step:
      run_step(lock);
      break;
    case Action::slice:
      run_slice(lock);
      break;
    case Action::idle:
      break;
  }
  leading_ = false;
}

void RunningBatch::end_cancelled() {
  for (Call* call : calls_) {
    if (call->ended()) continue;
    try {
      if (call->control.cancel) call->control.cancel->check();
      if (call->control.abandoned) call->control.abandoned->check();
    } catch (...) {
      end(*call, std::current_exception());
    }
  }
}

// Between steps rows leave and join.
void RunningBatch::apply_changes() {
  for (Decoding::Handle handle : departures_) decoding_.cancel(handle);
  departures_.clear();
  for (Decoding::Handle handle : stops_) try {
      if (auto event = decoding_.stop(handle)) take(*event);
    } catch (...) {
      if (auto owner = owners_.find(handle); owner != owners_.end())
        end(*owner->second.first, std::current_exception());
    }
  stops_.clear();
  add_arrivals();
  for (Decoding::Handle handle : departures_) decoding_.cancel(handle);  // of calls that ended just now
  departures_.clear();
}

void RunningBatch::add_arrivals() {
  while (!text_arrivals_.empty()) {
    TextCall& call = *text_arrivals_.front();
    text_arrivals_.pop_front();
    try {
      for (size_t r = 0; r < call.rows.size(); ++r) {
        const size_t most = departures_.size() + static_cast<size_t>(decoding_.sequences()) + 1;
        if (departures_.capacity() < most) departures_.reserve(2 * most);
        call.rows[r].handle = call.add(r);
        owners_[call.rows[r].handle] = {&call, r};
        begins_ = true;
      }
    } catch (...) {
      end(call, std::current_exception());
    }
  }
}

Work RunningBatch::work(Clock::time_point now) const {
  Work work;
  work.rows = decoding_.sequences();
  work.begins = begins_;
  work.images = encoding_ || !image_calls_.empty();
  work.behind = static_cast<int64_t>(image_calls_.size()) - (encoding_ || image_calls_.empty() ? 0 : 1);
  work.slices = slices_;
  work.since_step = seconds(now - stepped_);
  work.step_cost = step_cost_;
  const int64_t tokens = encoding_              ? encoding_->tokens()
                         : image_calls_.empty() ? 0
                                                : image_tokens(image_calls_.front()->pixels);
  work.slice_cost = slice_token_cost_ * static_cast<double>(tokens);
  return work;
}

void RunningBatch::run_step(Lock& lock) {
  const Decoding::Counts before = decoding_.counts();
  const Clock::time_point begin = Clock::now();
  lock.unlock();
  std::vector<Decoding::Event>& events = decoding_.step();
  const Clock::time_point end = Clock::now();
  lock.lock();
  average(step_cost_, seconds(end - begin));
  stepped_ = end;
  slices_ = 0;
  begins_ = false;
  stats_.prefill_tokens += decoding_.counts().prefill_tokens - before.prefill_tokens;
  stats_.decode_steps += decoding_.counts().decode_steps - before.decode_steps;
  stats_.decode_rows += decoding_.counts().decode_rows - before.decode_rows;
  stats_.step_ns += nanoseconds(end - begin);
  for (Decoding::Event& event : events) take(event);
}

// Gives an event to the call whose row it is of.
void RunningBatch::take(Decoding::Event& event) {
  const auto found = owners_.find(event.handle);
  if (found == owners_.end()) return;  // it left during the step
  const auto [call, row] = found->second;
  try {
    give(*call, row, event);
  } catch (...) {
    end(*call, std::current_exception());
  }
}

// Throws what ends the call.
void RunningBatch::give(TextCall& call, size_t r, Decoding::Event& event) {
  TextCall::Row& row = call.rows[r];
  if (event.error) try {
      std::rethrow_exception(event.error);
    } catch (const Error& error) {
      throw Error(std::string(call.name) + "[" + std::to_string(call.first + r) + "]: " + error.what());
    }
  if (call.on_tokens && !row.stopped) {
    if (event.token >= 0)
      call.news.push_back({r, {event.token}});
    else if (!call.single)
      call.news.push_back({r, event.done ? event.results[0].tokens : search::Tokens{}});
  }
  if (event.done) {
    owners_.erase(event.handle);
    row.handle = 0;
    --call.left;
    row.last = std::move(event);
  }
  if (call.has_news() || call.ended()) wake(call);
}

void RunningBatch::run_slice(Lock& lock) {
  if (!encoding_) {
    begin_encoding();
    if (!encoding_) return;  // it failed, and so have its calls
  }
  const double tokens = static_cast<double>(encoding_->tokens());
  const Clock::time_point begin = Clock::now();
  lock.unlock();
  std::exception_ptr error;
  try {
    encoding_->advance();
  } catch (...) {
    error = std::current_exception();
  }
  const Clock::time_point done = Clock::now();
  lock.lock();
  average(slice_token_cost_, seconds(done - begin) / tokens);
  stats_.encode_ns += nanoseconds(done - begin);
  ++slices_;
  for (auto& [call, index] : encoding_for_)
    if (error && call) end(*call, error);
  const bool wanted = std::any_of(encoding_for_.begin(), encoding_for_.end(), [](const auto& of) { return of.first; });
  if (wanted && encoding_->done()) finish_encoding();
  if (!wanted || encoding_->done()) {
    encoding_.reset();
    encoding_for_.clear();
  }
}

// Images of the first call that waits, and of others of the same shape.
void RunningBatch::begin_encoding() {
  ImageCall& first = *image_calls_.front();
  std::vector<ImageCall*> joined;
  try {
    int64_t waiting = 0;
    for (ImageCall* call : image_calls_)
      if (call->output == first.output && same_shape(call->pixels, first.pixels)) {
        joined.push_back(call);
        waiting += call->waiting();
      }
    const int64_t tokens = image_tokens(first.pixels), floats = first.pixels.image_floats();
    const int64_t fill = std::clamp(kTokensPerThread * image_model_.pool.num_threads(), kFewestTokens, kMostTokens);
    const int64_t count = images_together(waiting, std::max<int64_t>(1, fill / tokens), work(Clock::now()),
                                          slice_token_cost_ * static_cast<double>(tokens));
    Buffer values = float_buffer(count * floats);
    encoding_for_.clear();
    for (ImageCall* call : joined)
      while (call->next < call->pixels.images && static_cast<int64_t>(encoding_for_.size()) < count) {
        std::memcpy(values.floats() + static_cast<int64_t>(encoding_for_.size()) * floats,
                    call->pixels.data + call->next * floats, static_cast<size_t>(floats) * sizeof(float));
        encoding_for_.emplace_back(call, call->next++);
      }
    PixelBatch shape = first.pixels;
    shape.images = count;
    encoding_ = std::make_unique<Encoding>(image_model_, std::move(values), shape, first.output);
  } catch (...) {
    end(first, std::current_exception());
    for (ImageCall* call : joined) end(*call, std::current_exception());
    encoding_for_.clear();
  }
  image_calls_.erase(std::remove_if(image_calls_.begin(), image_calls_.end(),
                                    [](const ImageCall* call) { return call->waiting() == 0; }),
                     image_calls_.end());
}

void RunningBatch::finish_encoding() {
  std::vector<std::shared_ptr<Prefix>> prefixes;
  const int64_t floats = encoding_->tokens() / encoding_->images() * image_model_.config.vision.hidden_size;
  const bool features = encoding_->output() == Encoding::Output::features;
  if (!features) prefixes = encoding_->take_prefixes();
  for (size_t i = 0; i < encoding_for_.size(); ++i) {
    auto [call, index] = encoding_for_[i];
    if (!call) continue;
    if (features)
      std::memcpy(call->features + index * floats, encoding_->features().floats() + static_cast<int64_t>(i) * floats,
                  static_cast<size_t>(floats) * sizeof(float));
    else
      call->prefixes[static_cast<size_t>(index)] = std::move(prefixes[i]);
    --call->left;
    stats_.encoded_images += !features;
    if (call->ended()) wake(*call);
  }
}

int64_t RunningBatch::image_tokens(const PixelBatch& pixels) const {
  return pixels.frames * frame_tokens(image_model_.config.vision, pixels);
}

}  // namespace gitfast::cpu
