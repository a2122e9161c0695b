// The steps of a search on the device, as functions of one full warp: any kernel may call them, a slot at a time.
//
// Slots share nothing but the count of those that ended, so they may be advanced in any order, by any warps. Loops are
// not unrolled: most wait for shuffles, and the code is a part of the persistent kernel's, which must stay small.
#pragma once

#include <climits>
#include <cmath>

#include "cuda/search.h"
#include "cuda/select.h"
#include "cuda/warp.cuh"
#include "random.h"

namespace gitfast::cuda {

// The number that transformers adds to scores that must not win; the score where no beam has finished yet.
constexpr float kAside = -1e9f;

template <class T>
__device__ __forceinline__ T smaller(T a, T b) {
  return a < b ? a : b;
}

// New tokens of a row at most: what is asked for, as far as there is memory.
__device__ __forceinline__ int limit_of(const SearchState& s, int prompt) {
  const int64_t room = smaller(s.max_steps, s.max_text - s.prompt_len[prompt]);
  return static_cast<int>(smaller(room, int64_t{s.settings[prompt].limit}));
}

// For one lane: which prefix a slot's rows see; -1 for none, of rows that are not decoded any more.
__device__ inline void set_image(const SearchState& s, int slot, int image) {
  const int rows = static_cast<int>(s.rows_per_slot);
#pragma unroll 1
  for (int row = slot * rows; row < (slot + 1) * rows; ++row) s.image[row] = image;
  if (s.tiles) s.tiles[slot * 3 + 2] = image;
}

// A slot searches for the sequence it has taken: before its first step.
__device__ inline void begin_sequence(const SearchState& s, int slot, int sequence) {
  const int lane = lane_of_warp(), rows = static_cast<int>(s.rows_per_slot), columns = static_cast<int>(s.max_text);
  const int per_prompt = static_cast<int>(s.sequences_per_prompt), prompt = sequence / per_prompt;
  const int length = s.prompt_len[prompt], first = prompt * per_prompt * rows;
#pragma unroll 1
  for (int i = 0; i < rows; ++i) {
    const int row = slot * rows + i, own = sequence * rows + i;
#pragma unroll 1
    for (int column = lane; column < columns; column += kWarpSize)
      s.kv_index[int64_t{row} * columns + column] = (column < length - 1 ? first : own) * columns + column;
    if (lane > 0) continue;
    s.ids[row] = s.last_tokens[prompt];
    s.positions[row] = length - 1;
    s.text_len[row] = length;
    if (s.row_keys) s.row_keys[row] = s.keys[sequence];
    if (rows == 1) continue;
    s.scores[row] = i == 0 ? 0 : -INFINITY;
    s.finished[own] = {kAside, 0, 0, 0, 0};
  }
  if (lane > 0) return;
  set_image(s, slot, s.images[prompt]);
  s.steps[slot] = 0;
}

// Lets a slot take the next sequence that waits; -1 for none. Others may take theirs at the same time. Through memory:
// all lanes know of the slot's sequence before, and of this one after.
__device__ inline int take_sequence(const SearchState& s, int slot) {
  __syncwarp();
  if (lane_of_warp() == 0) {
    const unsigned queued = *s.queued;
    unsigned next = queued, found = queued;
    do {
      next = found;
      found = atomicCAS(s.next_sequence, next, next == queued ? queued : next + 1);
    } while (found != next);
    s.sequence[slot] = next == queued ? -1 : s.queue[next % static_cast<unsigned>(s.sequences)];
  }
  __syncwarp();
  return s.sequence[slot];
}

__device__ inline void start_slot(const SearchState& s, int slot) {
  if (s.sequence[slot] >= 0) return;
  const int sequence = take_sequence(s, slot);
  if (sequence >= 0) begin_sequence(s, slot, sequence);
}

// The next sequence that waits takes the slot, if there is one.
__device__ inline void end_sequence(const SearchState& s, int slot, Ended how) {
  if (lane_of_warp() == 0) {
    *static_cast<volatile int32_t*>(s.ended + s.sequence[slot]) = static_cast<int32_t>(how);
    atomicInc(s.num_ended, UINT_MAX);
  }
  const int next = take_sequence(s, slot);
  if (next >= 0) return begin_sequence(s, slot, next);
  if (lane_of_warp() == 0) set_image(s, slot, -1);
}

// A value of each choice of a row: choice i's is that of lane i % 32, the first or the second of its own.
constexpr int kOfLane = static_cast<int>(kMaxChoices) / kWarpSize;

template <class T>
struct OfChoices {
  T own[kOfLane];

  __device__ __forceinline__ T at(int i) const {
    static_assert(kOfLane == 2, "one shuffle each");
    const T first = __shfl_sync(kAllLanes, own[0], i % kWarpSize);
    const T second = __shfl_sync(kAllLanes, own[1], i % kWarpSize);
    return i < kWarpSize ? first : second;
  }
};

// Returns the last of `count` descending scores that is needed for weights from `least` on to reach their share.
__device__ inline float least_of_share(const OfChoices<float>& scores, const OfChoices<float>& weights, int count,
                                       float least, float share) {
  double sum = 0, reached = 0;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float weight = weights.at(i);
    if (scores.at(i) >= least) sum += double{weight};
  }
  float last = least;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float score = scores.at(i), weight = weights.at(i);
    if (score >= least && (i == 0 || reached < double{share} * sum)) last = score;
    reached += double{weight};
  }
  return last;
}

// Which of `count` tokens is at quantile u of their weights, in order of token: its index among them.
__device__ inline int index_at_quantile(const OfChoices<int32_t>& tokens, const OfChoices<float>& weights, int count,
                                        double u) {
  double sum = 0, before[kOfLane] = {0, 0};  // the weight of all, and of lower tokens
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const int32_t token = tokens.at(i);
    const float weight = weights.at(i);
    sum += double{weight};
    for (int j = 0; j < kOfLane; ++j)
      if (token < tokens.own[j]) before[j] += double{weight};
  }
  // The last token that the target lies behind.
  int32_t drawn = -1;
  int index = 0;
  for (int j = 0; j < kOfLane; ++j)
    if (weights.own[j] > 0 && before[j] <= u * sum && tokens.own[j] > drawn)
      drawn = tokens.own[j], index = lane_of_warp() + j * kWarpSize;
#pragma unroll 1
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const int32_t other = __shfl_xor_sync(kAllLanes, drawn, lanes);
    const int its_index = __shfl_xor_sync(kAllLanes, index, lanes);
    if (other > drawn) drawn = other, index = its_index;
  }
  return index;
}

// One of a row's choices by chance, by the rules of csrc/search/sampling.cpp: scores below the k-th, not needed for the
// share top_p, or lighter than min_p weigh nothing.
__device__ inline int draw_choice(const SearchState& s, const Choices& choices, int row, int sequence, int step) {
  const int count = static_cast<int>(choices.count);
  const int64_t first = row * choices.count;
  const SearchSettings& settings = s.settings[sequence / s.sequences_per_prompt];
  OfChoices<float> scores, weights;
  OfChoices<int32_t> tokens;
  for (int j = 0; j < kOfLane; ++j) {
    const int i = lane_of_warp() + j * kWarpSize;
    tokens.own[j] = i < count ? choices.tokens[first + i] : INT_MAX;
    const float below_best = i < count ? choices.log_probs[first + i] - choices.log_probs[first] : -INFINITY;
    scores.own[j] = below_best / settings.temperature;
    weights.own[j] = expf(scores.own[j]);
  }
  float least = settings.top_k > 0 ? scores.at(smaller(settings.top_k, count) - 1) : -INFINITY;
  if (settings.top_p < 1) least = least_of_share(scores, weights, count, least, settings.top_p);
  for (int j = 0; j < kOfLane; ++j)
    if (scores.own[j] < least || weights.own[j] < settings.min_p) weights.own[j] = 0;
  const double u = uniform(static_cast<uint64_t>(s.keys[sequence]), static_cast<uint64_t>(step));
  return index_at_quantile(tokens, weights, count, u);
}

// For one lane: a row's next token, and its position.
__device__ __forceinline__ void feed(const SearchState& s, int64_t row, int32_t token, int position) {
  s.ids[row] = token;
  s.positions[row] = position;
  s.text_len[row] = position + 1;
}

// The next token of a slot of one row; whether its sequence ends, in all lanes.
__device__ inline Ended advance_row(const SearchState& s, const Choices& choices, int row, int sequence, int step) {
  const auto prompt = static_cast<int>(sequence / s.sequences_per_prompt);
  const bool last_step = step + 1 >= limit_of(s, prompt);
  const int64_t first = row * choices.count;
  const bool sound = choices.tokens[first] >= 0;
  const int64_t chosen = first + (s.keys && !choices.drawn && sound ? draw_choice(s, choices, row, sequence, step) : 0);
  const int32_t token = !sound ? -1 : choices.drawn ? choices.drawn[row] : choices.tokens[chosen];
  const float log_prob = choices.drawn ? choices.drawn_log_probs[row] : choices.log_probs[chosen];
  const Ended how = token < 0 ? Ended::not_numbers : token == s.eos || last_step ? Ended::yes : Ended::no;
  if (lane_of_warp() > 0) return how;
  const int64_t record = step * s.sequences + sequence;
  s.tokens[record] = token;
  s.log_probs[record] = log_prob;
  if (how == Ended::no) feed(s, row, token, s.prompt_len[prompt] + step);
  return how;
}

// A continuation of one of a slot's beams; each of the best 2 K is in the lane of its rank.
struct Candidate {
  float score;  // -inf where there is none
  float log_prob;
  int32_t token, row;  // the row within the slot
  bool ends;
};

// Beam r is in lane r, its choices in descending order: 2 K times the best of what is left is taken.
__device__ inline Candidate find_candidate(const SearchState& s, const Choices& choices, int slot, bool last_step) {
  const int lane = lane_of_warp(), beams = static_cast<int>(s.rows_per_slot), count = static_cast<int>(choices.count);
  const int64_t row = int64_t{slot} * beams + lane;
  const float so_far = lane < beams ? s.scores[row] : -INFINITY;
  const int own = so_far > -INFINITY ? count : 0;
  const auto log_prob_of = [&](int i) { return i < own ? choices.log_probs[row * count + i] : -INFINITY; };
  Candidate mine{-INFINITY, 0, 0, 0, false};
  int taken = 0, index = 0;
  float next = log_prob_of(0), following = log_prob_of(1);
#pragma unroll 1
  for (int rank = 0; rank < 2 * beams; ++rank) {
    float best = next + so_far;
    int from = lane;
#pragma unroll 1
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, lanes);
      const int other_from = __shfl_xor_sync(kAllLanes, from, lanes);
      if (other > best || (other == best && other_from < from)) best = other, from = other_from;
    }
    const int its_index = __shfl_sync(kAllLanes, taken, from);
    const float log_prob = __shfl_sync(kAllLanes, next, from);
    if (lane == rank) mine = {best, log_prob, 0, from, false}, index = its_index;
    if (lane == from) {
      ++taken;
      next = following;
      following = log_prob_of(taken + 1);
    }
  }
  if (mine.score > -INFINITY) {
    mine.token = choices.tokens[(int64_t{slot} * beams + mine.row) * count + index];
    mine.ends = last_step || mine.token == s.eos;
  }
  return mine;
}

// The score of a beam of so many new tokens over its length norm. Beams: a sequence is its prompt's only one.
__device__ __forceinline__ float normalized(const SearchState& s, int sequence, float score, int new_tokens,
                                            bool ends_in_eos) {
  const int prompt_len = s.prompt_len[sequence];
  const int counted = s.settings[sequence].count_prompt ? prompt_len + new_tokens - (ends_in_eos ? 1 : 0) : new_tokens;
  return score / s.length_norms[sequence * (s.max_text + 1) + counted];
}

// Merges the candidates that finish, which are among the K best, into the finished beams of the sequence.
__device__ inline void keep_finished(const SearchState& s, int sequence, const Candidate& candidate, int step) {
  const int lane = lane_of_warp(), beams = static_cast<int>(s.rows_per_slot);
  const bool finishes = lane < beams && candidate.ends;
  if (!__any_sync(kAllLanes, finishes)) return;
  FinishedBeam* finished = s.finished + int64_t{sequence} * beams;
  FinishedBeam old{-INFINITY, 0, 0, 0, 0}, fresh = old;
  if (lane < beams) old = finished[lane];
  if (finishes)
    fresh = {normalized(s, sequence, candidate.score, step + 1, candidate.token == s.eos), candidate.log_prob,
             candidate.token, sequence * beams + candidate.row, step + 1};
  // How many are better; of equal ones those that were there, then those of better candidates.
  int old_rank = lane, fresh_rank = 0;
#pragma unroll 1
  for (int i = 0; i < beams; ++i) {
    const float others_old = __shfl_sync(kAllLanes, old.score, i), others = __shfl_sync(kAllLanes, fresh.score, i);
    old_rank += others > old.score;
    fresh_rank += others_old >= fresh.score;
    fresh_rank += others > fresh.score || (others == fresh.score && i < lane);
  }
  __syncwarp();  // all are read
  if (lane < beams && old_rank < beams) finished[old_rank] = old;
  if (finishes && fresh_rank < beams) finished[fresh_rank] = fresh;
  __syncwarp();
}

// Columns [begin, end) of the kv_index of a slot's rows: row r gets those of row `parent`, which lane r has. Every lane
// has a column of a row in hand before any is written; kBatch loads are under way at once.
__device__ inline void exchange_kv_index(const SearchState& s, int slot, int parent, int begin, int end) {
  constexpr int kBatch = 4;
  const int lane = lane_of_warp(), beams = static_cast<int>(s.rows_per_slot);
  int lanes_per_row = kWarpSize;
  while (lanes_per_row * beams > kWarpSize) lanes_per_row /= 2;
  const int row = lane / lanes_per_row, offset = lane % lanes_per_row;
  const int own_end = row < beams ? end : begin;
  const int source = __shfl_sync(kAllLanes, parent, row) * lanes_per_row + offset;
  int32_t* kv_index = s.kv_index + (int64_t{slot} * beams + row) * s.max_text;  // not read where there is no such row
#pragma unroll 1
  for (int base = begin + offset; __any_sync(kAllLanes, base < end); base += kBatch * lanes_per_row) {
    int32_t held[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int column = base + i * lanes_per_row;
      held[i] = column < own_end ? kv_index[column] : 0;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) held[i] = __shfl_sync(kAllLanes, held[i], source);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int column = base + i * lanes_per_row;
      if (column < own_end) kv_index[column] = held[i];
    }
  }
}

// The next tokens of a slot's beams; whether its sequence ends, in all lanes.
__device__ inline Ended advance_beams(const SearchState& s, const Choices& choices, int slot, int sequence, int step) {
  const int lane = lane_of_warp(), beams = static_cast<int>(s.rows_per_slot);
  const int64_t row = int64_t{slot} * beams + lane;
  const bool lost = lane < beams && s.scores[row] > -INFINITY && choices.tokens[row * choices.count] < 0;
  if (__any_sync(kAllLanes, lost)) return Ended::not_numbers;
  const int prompt_len = s.prompt_len[sequence], limit = limit_of(s, sequence), new_tokens = step + 1;
  const auto stopping = static_cast<Stopping>(s.settings[sequence].stopping);
  const Candidate candidate = find_candidate(s, choices, slot, new_tokens >= limit);
  keep_finished(s, sequence, candidate, step);

  // The best that go on are the next beams: beam r in lane r.
  unsigned going = __ballot_sync(kAllLanes, candidate.score > -INFINITY && !candidate.ends);
  const int running = smaller(__popc(going), beams);
  int source = 0;
#pragma unroll 1
  for (int r = 0; r < running; ++r, going &= going - 1)
    if (lane == r) source = __ffs(going) - 1;
  Candidate mine;
  mine.score = __shfl_sync(kAllLanes, candidate.score, source);
  mine.log_prob = __shfl_sync(kAllLanes, candidate.log_prob, source);
  mine.token = __shfl_sync(kAllLanes, candidate.token, source);
  mine.row = __shfl_sync(kAllLanes, candidate.row, source);

  FinishedBeam* finished = s.finished + int64_t{sequence} * beams;
  const FinishedBeam kept = lane < beams ? finished[lane] : FinishedBeam{kAside, 0, 0, 0, 0};
  const int found = __popc(__ballot_sync(kAllLanes, kept.steps > 0));
  if (running == 0 && found == 0 &&
      lane == 0)  // its score is below what is set aside: a slot has a result all the same
    finished[0] = {normalized(s, sequence, candidate.score, new_tokens, candidate.token == s.eos), candidate.log_prob,
                   candidate.token, sequence * beams + candidate.row, new_tokens};
  const float worst = __shfl_sync(kAllLanes, kept.score, beams - 1);
  const float best = __shfl_sync(kAllLanes, mine.score, 0);
  bool ends = running == 0;
  if (!ends && found == beams) {
    const int length = stopping == Stopping::cannot_improve_at_full_length ? limit : new_tokens;
    ends = stopping == Stopping::at_once || !(normalized(s, sequence, best, length, false) > worst);
  }
  if (ends) return Ended::yes;
  const bool exists = lane < running;
  if (__any_sync(kAllLanes, exists && mine.row != lane))
    exchange_kv_index(s, slot, exists ? mine.row : lane, prompt_len, prompt_len + step);
  if (lane >= beams) return Ended::no;
  const int64_t record = (step * s.sequences + sequence) * beams + lane;
  s.tokens[record] = exists ? mine.token : 0;
  s.log_probs[record] = mine.log_prob;
  s.parents[record] = sequence * beams + mine.row;
  s.scores[row] = exists ? mine.score : -INFINITY;
  feed(s, row, exists ? mine.token : 0, prompt_len + step);
  return Ended::no;
}

__device__ inline void advance_slot(const SearchState& s, const Choices& choices, int slot) {
  const int sequence = s.sequence[slot], step = s.steps[slot];
  if (sequence < 0) return;
  __syncwarp();  // all lanes know
  if (lane_of_warp() == 0) s.steps[slot] = step + 1;
  const Ended how = s.rows_per_slot > 1 ? advance_beams(s, choices, slot, sequence, step)
                                        : advance_row(s, choices, slot, sequence, step);
  if (how != Ended::no) end_sequence(s, slot, how);
}

}  // namespace gitfast::cuda
