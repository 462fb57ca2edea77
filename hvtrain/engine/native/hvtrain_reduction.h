// What an all-reduce of Horovod asks of us: which codec a tensor is to be summed with, and when that began and ended.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "hvtrain_neighbours.h"

namespace hvtrain {

// One reduction, in nanoseconds of CLOCK_MONOTONIC; `codec` is the part of it spent on encoding, adding and decoding.
struct Span {
  int64_t begin, end, codec, bytes;
  char name[96];
};

class Reductions {
 public:
  // The codec is part of the tensor's name, hvtrain_coded_<codec>.<rest>: so all ranks agree on it when they agree on
  // the tensor, and no setting can differ between them. False if the name asks for none.
  static bool codecOf(const std::string& name, Codec& codec) {
    static const std::string mark = "hvtrain_coded_";
    auto at = name.find(mark);
    if (at == std::string::npos) {
      return false;
    }
    at += mark.size();
    auto word = name.substr(at, name.find('.', at) - at);
    const char* names[] = {"none", "fp16", "bf16", "int8"};
    for (int i = 0; i < 4; ++i) {
      if (word == names[i]) {
        codec = static_cast<Codec>(i);
        return true;
      }
    }
    throw std::logic_error("unknown codec in the tensor name " + name);
  }

  // The seed of the noise of what is reduced from now on, the same on all ranks.
  void seed(uint64_t value) { seed_ = value; }

  // Sum `data` over the context's ranks. False if Horovod's own way is the better one, and nothing has been done:
  // without a codec, where hosts have different numbers of ranks, a ring crosses the network less often. Otherwise
  // `coding` becomes the nanoseconds spent on encoding, adding up and decoding.
  bool sum(const std::shared_ptr<gloo::Context>& context, Codec codec, const std::string& name, float* data,
           size_t count, int64_t& coding) {
    if (context->size == 1 || count == 0) {
      return true;
    }
    if (neighbours_ == nullptr || !neighbours_->of(context)) {
      neighbours_.reset(); // unmaps what the members of a former round have left
      neighbours_.reset(new Neighbours(context));
    }
    if (neighbours_->regular()) {
      coding = neighbours_->sum(*context, codec, data, count, seedOf(name));
      return true;
    }
    if (codec == Codec::kNone) {
      return false;
    }
    coding = neighbours_->sumApart(*context, codec, data, count, seedOf(name));
    return true;
  }

  // The round is over: give back the memory of its members. To be called by the engine's thread.
  void leave() { neighbours_.reset(); }

  uint32_t seedOf(const std::string& name) const {
    uint64_t seed = seed_;
    uint32_t hash = mixed(static_cast<uint32_t>(seed) ^ mixed(static_cast<uint32_t>(seed >> 32)));
    for (unsigned char letter : name) {
      hash = (hash ^ letter) * 16777619U; // FNV-1a
    }
    return hash;
  }

  // Keep a span of every reduction from now on, or stop.
  void record(bool on) {
    std::lock_guard<std::mutex> guard(mutex_);
    recording_ = on;
    spans_.clear();
  }

  void done(const std::string& name, int64_t begin, int64_t codec, int64_t bytes) {
    int64_t end = nanoseconds();
    busy_ += end - begin;
    if (!recording_) {
      return;
    }
    Span span{begin, end, codec, bytes, {}};
    std::strncpy(span.name, name.c_str(), sizeof span.name - 1);
    std::lock_guard<std::mutex> guard(mutex_);
    if (spans_.size() < kMost) {
      spans_.push_back(span);
    }
  }

  // Nanoseconds that reductions have been under way so far.
  int64_t busy() const { return busy_; }

  // Move up to `room` spans, oldest first, to `out`; how many there were.
  int64_t take(Span* out, int64_t room) {
    std::lock_guard<std::mutex> guard(mutex_);
    auto count = std::min<int64_t>(room, static_cast<int64_t>(spans_.size()));
    std::copy(spans_.begin(), spans_.begin() + count, out);
    spans_.erase(spans_.begin(), spans_.begin() + count);
    return count;
  }

  static Reductions& instance() { // never destroyed, as threads may outlive static destruction
    static Reductions* reductions = new Reductions();
    return *reductions;
  }

 private:
  static constexpr size_t kMost = 1 << 16; // in case that nobody takes them
  std::atomic<uint64_t> seed_{0};
  std::atomic<int64_t> busy_{0};
  std::atomic<bool> recording_{false};
  std::mutex mutex_;
  std::vector<Span> spans_;
  std::unique_ptr<Neighbours> neighbours_; // the engine's thread alone uses it, one after the other
};

} // namespace hvtrain
