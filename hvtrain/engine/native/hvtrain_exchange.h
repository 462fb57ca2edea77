// The sum of a float32 buffer over some ranks, in place, encoded on the wire and added up in float32.
//
//   rank 0        rank 1        rank 2       Each rank owns a slice of the buffer. It gets the others' numbers for
//   [A|b|c]       [a|B|c]       [a|b|C]      it, encoded; adds them up in a fixed order (hvtrain_tree.h), its own
//      \            |            /           numbers, which never were encoded, in their place; encodes the sums;
//       encoded slices to their owners       sends them to all, and decodes them itself: so all ranks hold the same
//      /            |            \           bits. A rank sends and receives 2 (N - 1) / N of the encoded buffer.
//   [S|S|S]       [S|S|S]       [S|S|S]
//
// Slices go in chunks: while one is on the wire, the next one is encoded, or the one before added up. All receptions
// are posted first, so no message waits for its receiver. What goes wrong with a connection is gloo's exception.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "gloo/context.h"
#include "gloo/transport/unbound_buffer.h"
#include "gloo/types.h"

#include "hvtrain_codecs.h"
#include "hvtrain_tree.h"

namespace hvtrain {

inline int64_t nanoseconds() { // of CLOCK_MONOTONIC, which Python reads too
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Memory that is kept from one operation to the next: pages that are mapped anew cost more than a copy. One thread
// at a time runs operations in a process.
class Scratch {
 public:
  uint8_t* take(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = 0;
      memory_ = static_cast<uint8_t*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
      if (memory_ == nullptr) {
        throw std::runtime_error("no memory for the exchange of gradients");
      }
      size_ = bytes;
    }
    return memory_;
  }
  static Scratch& shared() { // never destroyed: the engine's thread may outlive static destruction
    static Scratch* scratch = new Scratch();
    return *scratch;
  }

 private:
  uint8_t* memory_ = nullptr;
  size_t size_ = 0;
};

class Exchange {
 public:
  // Among `members`, ranks of the context in growing order, of which this process is number `place`. `seed` must be the
  // same for all of them.
  Exchange(gloo::Context& context, const std::vector<int>& members, int place, Codec codec, float* data, size_t count,
           uint32_t seed)
      : context_(context), members_(members), codec_(codec), data_(data), count_(count), seed_(seed), rank_(place),
        size_(static_cast<int>(members.size())) {
    slice_ = (count + size_ - 1) / size_;
    slice_ = (slice_ + kBlock - 1) / kBlock * kBlock;
    chunk_ = kChunkBytes / elementBytes(codec) / kBlock * kBlock;
  }

  // Nanoseconds spent on encoding, adding up and decoding.
  int64_t codecTime() const { return codecTime_; }

  void run() {
    if (size_ == 1 || count_ == 0) { // then there is nothing for the others either
      return;
    }
    layOut();
    post();
    sendSlices();
    addUp();
    collect();
    for (; sends_ > 0; --sends_) {
      sent_->waitSend();
    }
    for (; results_ > 0; --results_) {
      result_->waitSend();
    }
  }

 private:
  // Bytes of a message. Large enough that system calls do not count, small enough for the second cache.
  static constexpr size_t kChunkBytes = 256 << 10;

  size_t begin(int rank) const { return std::min(count_, slice_ * rank); }
  size_t length(int rank) const { return std::min(count_, slice_ * (rank + 1)) - begin(rank); }
  size_t chunks(int rank) const { return (length(rank) + chunk_ - 1) / chunk_; }
  size_t length(int rank, size_t chunk) const { return std::min(chunk_, length(rank) - chunk * chunk_); }
  float* numbers(int rank, size_t chunk) const { return data_ + begin(rank) + chunk * chunk_; }
  // Where chunk number `chunk` of an encoded slice begins: all before it are full.
  size_t place(size_t chunk) const { return chunk * wireBytes(codec_, chunk_); }
  size_t encoded(int rank) const {
    size_t whole = length(rank) / chunk_, rest = length(rank) % chunk_;
    return place(whole) + (rest ? wireBytes(codec_, rest) : 0);
  }
  // Noise must differ between ranks, and between what a rank sends and the sums.
  uint32_t seed(int stage) const { return mixed(seed_ + 2 * static_cast<uint32_t>(rank_) + stage); }

  using Buffer = std::unique_ptr<gloo::transport::UnboundBuffer>;

  void layOut() {
    size_t padding = 64, mine = encoded(rank_), total = 0;
    std::vector<size_t> starts;
    auto reserve = [&](size_t bytes) {
      starts.push_back(total);
      total += (bytes + padding - 1) / padding * padding;
    };
    bool plain = codec_ == Codec::kNone; // goes from, and to, the buffer itself
    for (int p = 0; p < size_; ++p) {
      bool other = p != rank_;
      reserve(other ? mine : 0);                     // what p sends of this rank's slice
      reserve(other && !plain ? encoded(p) : 0);     // what this rank sends of p's slice
      reserve(other && !plain ? encoded(p) : 0);     // the sums of p's slice
    }
    reserve(plain ? 0 : mine); // the sums of this rank's slice
    uint8_t* memory = Scratch::shared().take(total);
    out_.resize(size_);
    for (int p = 0; p < size_; ++p) {
      out_[p] = memory + starts[3 * p + 1];
      parts_.push_back(context_.createUnboundBuffer(memory + starts[3 * p], mine));
      sums_.push_back(plain ? context_.createUnboundBuffer(data_ + begin(p), encoded(p))
                            : context_.createUnboundBuffer(memory + starts[3 * p + 2], encoded(p)));
    }
    own_ = plain ? reinterpret_cast<uint8_t*>(data_ + begin(rank_)) : memory + starts.back();
    result_ = context_.createUnboundBuffer(own_, mine);
    base_ = plain ? reinterpret_cast<uint8_t*>(data_) : memory;
    sent_ = context_.createUnboundBuffer(base_, plain ? count_ * sizeof(float) : total);
  }

  void post() {
    for (int k = 1; k < size_; ++k) {
      int p = (rank_ + k) % size_;
      for (size_t c = 0; c < chunks(rank_); ++c) {
        parts_[p]->recv(members_[p], slot(0), place(c), wireBytes(codec_, length(rank_, c)));
      }
    }
    for (int k = 1; k < size_; ++k) {
      int p = (rank_ + k) % size_;
      for (size_t c = 0; c < chunks(p); ++c) {
        sums_[p]->recv(members_[p], slot(1), place(c), wireBytes(codec_, length(p, c)));
      }
    }
  }

  void sendSlices() {
    size_t most = chunks(0); // the first slice is the longest
    for (size_t c = 0; c < most; ++c) {
      for (int k = 1; k < size_; ++k) { // each rank begins with another one
        int p = (rank_ + k) % size_;
        if (c >= chunks(p)) {
          continue;
        }
        size_t count = length(p, c);
        uint8_t* bytes = reinterpret_cast<uint8_t*>(numbers(p, c));
        if (codec_ != Codec::kNone) {
          int64_t before = nanoseconds();
          bytes = out_[p] + place(c);
          Chunk{codec_, bytes, count}.encode(numbers(p, c), seed(0), firstOf(p, c));
          codecTime_ += nanoseconds() - before;
        }
        sent_->send(members_[p], slot(0), bytes - base_, wireBytes(codec_, count));
        ++sends_;
      }
    }
  }

  void addUp() {
    for (size_t c = 0; c < chunks(rank_); ++c) {
      for (int p = 0; p < size_; ++p) {
        if (p != rank_) {
          parts_[p]->waitRecv();
        }
      }
      int64_t before = nanoseconds();
      addChunk(c);
      codecTime_ += nanoseconds() - before;
      for (int k = 1; k < size_; ++k) {
        result_->send(members_[(rank_ + k) % size_], slot(1), place(c), wireBytes(codec_, length(rank_, c)));
        ++results_;
      }
    }
  }

  // Block by block: the sums stay in the first cache until they are encoded.
  void addChunk(size_t c) {
    size_t count = length(rank_, c);
    float* mine = numbers(rank_, c);
    Chunk result{codec_, own_ + place(c), count};
    float sum[kBlock];
    for (size_t b = 0; b < result.blocks(); ++b) {
      size_t n = result.length(b);
      float* here = mine + b * kBlock;
      treeSum(0, size_, n, sum, [&](int p, float* room) -> const float* {
        if (p == rank_) {
          return here;
        }
        Chunk theirs{codec_, static_cast<uint8_t*>(parts_[p]->ptr) + place(c), count};
        if (codec_ == Codec::kNone) {
          return reinterpret_cast<const float*>(theirs.numbers(b));
        }
        theirs.decodeBlock(b, room);
        return room;
      });
      if (codec_ == Codec::kNone) {
        std::memcpy(here, sum, n * sizeof(float));
      } else {
        result.encodeBlock(b, sum, seed(1), firstOf(rank_, c));
        result.decodeBlock(b, here);
      }
    }
  }

  void collect() {
    size_t most = chunks(0);
    for (size_t c = 0; c < most; ++c) {
      for (int k = 1; k < size_; ++k) {
        int p = (rank_ + k) % size_;
        if (c >= chunks(p)) {
          continue;
        }
        sums_[p]->waitRecv();
        if (codec_ != Codec::kNone) {
          int64_t before = nanoseconds();
          Chunk{codec_, static_cast<uint8_t*>(sums_[p]->ptr) + place(c), length(p, c)}.decode(numbers(p, c));
          codecTime_ += nanoseconds() - before;
        }
      }
    }
  }

  uint64_t slot(uint8_t stage) const { return gloo::Slot::build(kSlotPrefix, 0) + stage; }
  uint32_t firstOf(int rank, size_t chunk) const { return static_cast<uint32_t>(begin(rank) + chunk * chunk_); }

  static constexpr uint8_t kSlotPrefix = 0x48; // none of gloo's own, which count from 1

  gloo::Context& context_;
  std::vector<int> members_;
  Codec codec_;
  float* data_;
  size_t count_, slice_, chunk_;
  uint32_t seed_;
  int rank_, size_;
  int64_t codecTime_ = 0;
  size_t sends_ = 0, results_ = 0;
  std::vector<uint8_t*> out_;
  uint8_t* own_ = nullptr;
  uint8_t* base_ = nullptr;
  // Last, so that they go first: nothing is written into memory that is in use again.
  std::vector<Buffer> parts_, sums_;
  Buffer sent_, result_;
};

} // namespace hvtrain
