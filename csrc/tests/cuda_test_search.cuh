// Searches on a device, over a made-up language, against a plain search on the host.
#pragma once

#include <algorithm>
#include <numeric>

#include "cuda/search.h"
#include "tests/cuda_test.cuh"

namespace gitfast::cuda {

using Tokens = std::vector<int32_t>;

inline Tokens lengths_of(const std::vector<Tokens>& prompts) {
  Tokens lengths;
  for (const Tokens& prompt : prompts) lengths.push_back(static_cast<int32_t>(prompt.size()));
  return lengths;
}
inline Tokens last_of(const std::vector<Tokens>& prompts) {
  Tokens last;
  for (const Tokens& prompt : prompts) last.push_back(prompt.back());
  return last;
}
inline int longest(const std::vector<Tokens>& prompts) {
  size_t most = 0;
  for (const Tokens& prompt : prompts) most = std::max(most, prompt.size());
  return static_cast<int>(most);
}

// The memory of a search: a sequence per prompt, of `beams` rows; prompt i sees image i % images. Norms are lengths, so
// that scores are means.
struct SearchMemory {
  SearchMemory(const std::vector<Tokens>& prompts, int slots, int beams, int limit, int max_steps, int32_t eos,
               int num_images = 1)
      : slots(slots),
        beams(beams),
        rows(slots * beams),
        sequences(static_cast<int>(prompts.size())),
        records(sequences * beams),
        max_steps(max_steps),
        max_text(longest(prompts) + max_steps),
        eos(eos),
        prompt_len(lengths_of(prompts)),
        last_tokens(last_of(prompts)),
        images(turns(sequences, num_images)),
        settings(std::vector<SearchSettings>(sequences,
                                             {limit, static_cast<int32_t>(Stopping::cannot_improve), 0, 0, 1, 1, 0})),
        length_norms(counting(sequences, max_text + 1)),
        queue(turns(sequences, sequences)),
        queued({static_cast<uint32_t>(sequences)}),
        ids(ints(rows)),
        positions(ints(rows)),
        text_len(ints(rows)),
        kv_index(ints(rows * max_text)),
        image(ints(rows)),
        sequence(Tokens(slots, -1)),
        steps(ints(slots)),
        ended(ints(sequences)),
        tokens(ints(max_steps * records)),
        parents(ints(max_steps * records)),
        next_sequence({0}),
        num_ended({0}),
        scores(std::vector<float>(rows, NAN)),
        log_probs(std::vector<float>(max_steps * records, NAN)),
        finished(std::vector<FinishedBeam>(records)) {}

  SearchState state() const {
    SearchState s;
    s.slots = slots;
    s.rows_per_slot = beams;
    s.sequences = sequences;
    s.max_text = max_text;
    s.max_steps = max_steps;
    s.eos = eos;
    s.prompt_len = prompt_len.data();
    s.last_tokens = last_tokens.data();
    s.images = images.data();
    s.settings = settings.data();
    s.length_norms = length_norms.data();
    s.queue = queue.data();
    s.queued = queued.data();
    s.ids = ids.data();
    s.positions = positions.data();
    s.text_len = text_len.data();
    s.kv_index = kv_index.data();
    s.image = image.data();
    s.scores = scores.data();
    s.sequence = sequence.data();
    s.steps = steps.data();
    s.ended = ended.data();
    s.next_sequence = next_sequence.data();
    s.num_ended = num_ended.data();
    s.finished = finished.data();
    s.tokens = tokens.data();
    s.log_probs = log_probs.data();
    s.parents = parents.data();
    return s;
  }

  const int slots, beams, rows, sequences, records, max_steps, max_text;
  const int32_t eos;
  const DeviceArray<int32_t> prompt_len, last_tokens, images;
  const DeviceArray<SearchSettings> settings;
  const DeviceArray<float> length_norms;
  const DeviceArray<int32_t> queue;
  const DeviceArray<uint32_t> queued;
  const DeviceArray<int32_t> ids, positions, text_len, kv_index, image, sequence, steps, ended, tokens, parents;
  const DeviceArray<uint32_t> next_sequence, num_ended;
  const DeviceArray<float> scores, log_probs;
  const DeviceArray<FinishedBeam> finished;

 private:
  static Tokens ints(int n) { return Tokens(n, -9); }
  static Tokens turns(int n, int of) {
    Tokens values;
    for (int i = 0; i < n; ++i) values.push_back(i % of);
    return values;
  }
  static std::vector<float> counting(int rows, int n) {
    std::vector<float> values(rows * n);
    for (int i = 0; i < rows; ++i) std::iota(values.begin() + i * n, values.begin() + (i + 1) * n, 0.0f);
    return values;
  }
};

struct Beam {
  Tokens ids;
  float score;
};

// Log-probabilities of the next token that depend on all of a sequence.
class Language {
 public:
  static constexpr int kVocabulary = 9, kContexts = 16;
  static constexpr int32_t kEos = 2;

  explicit Language(unsigned seed) : table_(normal<float>(kContexts * kVocabulary, seed, 2)) {
    for (auto row = table_.begin(); row < table_.end(); row += kVocabulary) {
      const float total =
          std::accumulate(row, row + kVocabulary, 0.0f, [](float a, float b) { return a + std::exp(b); });
      for (int i = 0; i < kVocabulary; ++i) row[i] -= std::log(total);
    }
  }
  const float* after(const Tokens& ids) const {
    int context = 0;
    for (const int32_t token : ids) context = (context * 31 + token + 7) % 10007;
    return &table_[context % kContexts * kVocabulary];
  }

 private:
  std::vector<float> table_;
};

inline bool better(const Beam& a, const Beam& b) { return a.score > b.score; }

struct Sequences {
  std::vector<Beam> beams;  // best first, scores over their lengths
  int steps;                // that were needed
};

// Searches on the host. One beam is greedy search.
inline Sequences plain_search(const Language& language, const Tokens& prompt, int beams, int limit) {
  std::vector<Beam> running{{prompt, 0}}, finished;
  int step = 0;
  for (bool over = false; !over;) {
    ++step;
    std::vector<Beam> candidates, next;
    for (const Beam& beam : running)
      for (int32_t token = 0; token < Language::kVocabulary; ++token) {
        candidates.push_back({beam.ids, beam.score + language.after(beam.ids)[token]});
        candidates.back().ids.push_back(token);
      }
    std::sort(candidates.begin(), candidates.end(), better);
    for (int rank = 0; rank < 2 * beams && rank < static_cast<int>(candidates.size()); ++rank) {
      const Beam& beam = candidates[rank];
      const bool ends = step == limit || beam.ids.back() == Language::kEos;
      if (ends && rank < beams) finished.push_back({beam.ids, beam.score / static_cast<float>(step)});
      if (!ends && static_cast<int>(next.size()) < beams) next.push_back(beam);
    }
    std::stable_sort(finished.begin(), finished.end(), better);
    if (static_cast<int>(finished.size()) >= beams) {
      finished.resize(beams);
      over = next.empty() || next[0].score / static_cast<float>(step) <= finished.back().score;
    }
    running = next;
  }
  for (Beam& beam : finished) beam.ids.erase(beam.ids.begin(), beam.ids.begin() + prompt.size());
  return {finished, step};
}

// A search on the device, with what a decoder and a head would do between its steps.
class DeviceSearch {
 public:
  DeviceSearch(const Language& language, const std::vector<Tokens>& prompts, int slots, int beams, int limit)
      : language_(language),
        prompts_(prompts),
        memory_(prompts, slots, beams, limit, limit + 1, Language::kEos),
        count_(beams > 1 ? std::min(2 * beams, Language::kVocabulary) : 1),
        tokens_(Tokens(memory_.rows * count_, -9)),
        log_probs_(std::vector<float>(memory_.rows * count_, NAN)),
        text_(memory_.records * memory_.max_text, -9) {}

  void run(int steps) {
    SearchCall call;
    call.state = memory_.state();
    call.choices = {count_, tokens_.data(), log_probs_.data(), nullptr, nullptr};
    call.overlap = true;
    start_search(call, nullptr);
    for (int step = 0; step < steps; ++step) {
      choose();
      advance_search(call, nullptr);
    }
  }

  // As plain_search() gives them, when all is over.
  std::vector<Beam> found(int sequence) const {
    const Tokens tokens = memory_.tokens.host(), parents = memory_.parents.host();
    const std::vector<float> log_probs = memory_.log_probs.host();
    std::vector<Beam> beams;
    if (memory_.beams == 1) {
      Beam beam{{}, 0};
      for (int at = sequence; at < static_cast<int>(tokens.size()) && tokens[at] >= 0; at += memory_.records) {
        beam.ids.push_back(tokens[at]);
        beam.score += log_probs[at];
        if (tokens[at] == Language::kEos) break;
      }
      beam.score /= static_cast<float>(beam.ids.size());
      return {beam};
    }
    const std::vector<FinishedBeam> finished = memory_.finished.host();
    for (int i = sequence * memory_.beams; i < (sequence + 1) * memory_.beams; ++i) {
      Beam beam{{finished[i].token}, finished[i].score};
      for (int step = finished[i].steps - 2, row = finished[i].row; step >= 0; --step) {
        beam.ids.insert(beam.ids.begin(), tokens[step * memory_.records + row]);
        row = parents[step * memory_.records + row];
      }
      beams.push_back(beam);
    }
    return beams;
  }
  bool over() const {
    const Tokens ended = memory_.ended.host();
    return std::all_of(ended.begin(), ended.end(), [](int32_t e) { return e == static_cast<int32_t>(Ended::yes); });
  }

 private:
  // The likeliest tokens of every row, from what stands in the kv_index that it sees.
  void choose() {
    const Tokens ids = memory_.ids.host(), kv_index = memory_.kv_index.host(), text_len = memory_.text_len.host();
    const Tokens sequence = memory_.sequence.host();
    Tokens tokens;
    std::vector<float> log_probs;
    for (int row = 0; row < memory_.rows; ++row) {
      const int32_t* own = &kv_index[row * memory_.max_text];
      const Tokens& prompt = prompts_[std::max(sequence[row / memory_.beams], 0)];
      for (size_t i = 0; i + 1 < prompt.size(); ++i) text_[own[i]] = prompt[i];
      text_[own[text_len[row] - 1]] = ids[row];
      Tokens sequence, order(Language::kVocabulary);
      for (int i = 0; i < text_len[row]; ++i) sequence.push_back(text_[own[i]]);
      const float* next = language_.after(sequence);
      std::iota(order.begin(), order.end(), 0);
      std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return next[a] > next[b]; });
      for (int i = 0; i < count_; ++i) {
        tokens.push_back(order[i]);
        log_probs.push_back(next[order[i]]);
      }
    }
    tokens_.set(tokens);
    log_probs_.set(log_probs);
  }

  const Language& language_;
  const std::vector<Tokens> prompts_;
  const SearchMemory memory_;
  const int count_;  // of choices per row
  const DeviceArray<int32_t> tokens_;
  const DeviceArray<float> log_probs_;
  Tokens text_;  // in each slot
};

// All at once, or one after another in one slot.
inline bool test_sequences(int beams, int limit, bool at_once) {
  const std::vector<Tokens> prompts{{3}, {5, 4}, {8, 1, 6}};
  const Language language(5);
  std::vector<Sequences> expected;
  int steps = 0;
  for (const Tokens& prompt : prompts) {
    expected.push_back(plain_search(language, prompt, beams, limit));
    steps = at_once ? std::max(steps, expected.back().steps) : steps + expected.back().steps;
  }
  DeviceSearch search(language, prompts, at_once ? static_cast<int>(prompts.size()) : 1, beams, limit);
  search.run(steps);
  if (!search.over()) return report("advance_search", DType::f32, beams, limit, steps, INFINITY);
  double worst = 0;
  for (size_t sequence = 0; sequence < prompts.size(); ++sequence) {
    const std::vector<Beam> found = search.found(static_cast<int>(sequence)), &sequences = expected[sequence].beams;
    for (int i = 0; i < beams; ++i) {
      worst = worse(worst, found[i].ids == sequences[i].ids ? 0 : INFINITY);
      worst = worse(worst, std::fabs(found[i].score - sequences[i].score) / 1e-5);
    }
  }
  return report("advance_search", DType::f32, beams, limit, steps, worst);
}

inline bool test_search() {
  bool right = true;
  for (const int beams : {1, 2, 5})
    for (const int limit : {4, 7})
      for (const bool at_once : {true, false}) right &= test_sequences(beams, limit, at_once);
  return right;
}

}  // namespace gitfast::cuda
