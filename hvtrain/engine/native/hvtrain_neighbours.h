// Sums over ranks, those of one host first, through memory that they share.
//
//   host 0: rank 0, 1     host 1: rank 2, 3      Buffers are cut into as many parts as a host has ranks.
//
//   1. each rank adds up its part over its host, reading the others' memory     0: [A|.]  1: [.|B]   2: [A|.]  3: [.|B]
//   2. part by part, hosts exchange sums: rank 0 with 2, rank 1 with 3          0 <--A--> 2          1 <--B--> 3
//   3. each rank copies the other parts from its neighbours                     [A|B] everywhere
//
// So every number crosses the network once for each host, not for each rank, and a job on one host needs no network
// at all: over loopback a ring copies every number into the kernel and out again, several times. Nobody writes into
// memory of another process: one that was stopped and goes on later can do no harm. What is said between neighbours
// goes over gloo's connections, so a lost peer, a cut round and a time-out end every wait as they do elsewhere.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <unistd.h>

#include "gloo/common/error.h"
#include "gloo/context.h"
#include "gloo/transport/unbound_buffer.h"
#include "gloo/types.h"

#include "hvtrain_exchange.h"
#include "hvtrain_memory.h"
#include "hvtrain_tree.h"

namespace hvtrain {

// Who of a context shares a host with whom.
class Neighbours {
 public:
  // Collective over the context's ranks, which all come to the same result.
  explicit Neighbours(const std::shared_ptr<gloo::Context>& context) : context_(context), rank_(context->rank) {
    int size = context->size;
    for (int p = 0; p < size; ++p) {
      everybody_.push_back(p);
    }
    struct Card {
      Whereabouts probe;
      uint64_t host;
    };
    auto probe = wanted() ? Region::make(sizeof(uint64_t)) : nullptr;
    Card mine{probe ? probe->at : Whereabouts{0, -1, 0, 0, 0}, probe ? host() : 0};
    std::vector<Card> cards(size);
    tell(*context, everybody_, rank_, kSetUp, &mine, cards.data(), sizeof mine);
    uint8_t good = probe != nullptr;
    for (int p = 0; p < size; ++p) {
      good = good && (p == rank_ || cards[p].host != mine.host || Region::open(cards[p].probe) != nullptr);
    }
    std::vector<uint8_t> all(size);
    tell(*context, everybody_, rank_, kSetUp, &good, all.data(), 1);
    bool shared = std::all_of(all.begin(), all.end(), [](uint8_t each) { return each == 1; });
    std::map<uint64_t, std::vector<int>> hosts;
    for (int p = 0; p < size; ++p) {
      hosts[shared ? cards[p].host : static_cast<uint64_t>(p)].push_back(p);
    }
    size_t width = hosts.begin()->second.size();
    regular_ = std::all_of(hosts.begin(), hosts.end(), [&](auto& each) { return each.second.size() == width; });
    near_ = hosts[shared ? mine.host : static_cast<uint64_t>(rank_)];
    place_ = placeIn(near_);
    if (!regular_) {
      return;
    }
    for (auto& each : hosts) {
      across_.push_back(each.second[place_]);
    }
    std::sort(across_.begin(), across_.end());
  }

  bool of(const std::shared_ptr<gloo::Context>& context) const { return context_.lock() == context; }
  // Whether all hosts have the same number of ranks.
  bool regular() const { return regular_; }

  // Returns the nanoseconds spent on encoding, adding up and decoding between hosts. Only if regular().
  int64_t sum(gloo::Context& context, Codec codec, float* data, size_t count, uint32_t seed) {
    if (near_.size() == 1) {
      return sumAcross(context, codec, data, count, seed);
    }
    if (across_.size() == 1) { // one host: nothing is compressed
      codec = Codec::kNone;
    }
    if (codec == Codec::kNone && count < kSmall) {
      return sumApart(context, codec, data, count, seed);
    }
    Whereabouts here;
    if (SharedMemory::instance().find(data, count * sizeof(float), here)) {
      return sumShared(context, codec, data, count, here, seed);
    }
    auto staging = SharedMemory::instance().staging(count * sizeof(float));
    if (staging == nullptr) {
      giveUp("there is no shared memory to be had");
      throw std::runtime_error("no shared memory for the exchange of gradients");
    }
    auto copy = reinterpret_cast<float*>(staging->memory);
    std::memcpy(copy, data, count * sizeof(float));
    int64_t time = sumShared(context, codec, copy, count, staging->at, seed);
    std::memcpy(data, copy, count * sizeof(float));
    return time;
  }

  // The same as if every rank had a host of its own.
  int64_t sumApart(gloo::Context& context, Codec codec, float* data, size_t count, uint32_t seed) const {
    Exchange exchange(context, everybody_, rank_, codec, data, count, seed);
    exchange.run();
    return exchange.codecTime();
  }

 private:
  int64_t sumAcross(gloo::Context& context, Codec codec, float* data, size_t count, uint32_t seed) {
    Exchange exchange(context, across_, placeIn(across_), codec, data, count, seed);
    exchange.run();
    return exchange.codecTime();
  }

  int64_t sumShared(gloo::Context& context, Codec codec, float* data, size_t count, const Whereabouts& here,
                    uint32_t seed) {
    int size = static_cast<int>(near_.size());
    std::vector<Whereabouts> places(size);
    tell(context, near_, place_, kReady, &here, places.data(), sizeof here);
    std::vector<const float*> theirs(size);
    for (int p = 0; p < size; ++p) {
      theirs[p] = p == place_ ? data : memoryOf(near_[p], places[p], count);
    }
    size_t part = ((count + size - 1) / size + kLine - 1) / kLine * kLine;
    auto begin = [&](int p) { return std::min(count, part * p); };
    addUp(data, theirs, begin(place_), begin(place_ + 1));
    int64_t time = sumAcross(context, codec, data + begin(place_), begin(place_ + 1) - begin(place_),
                             mixed(seed + static_cast<uint32_t>(place_)));
    uint8_t word = 1;
    std::vector<uint8_t> words(size);
    tell(context, near_, place_, kSummed, &word, words.data(), 1);
    for (int k = 1; k < size; ++k) {
      int p = (place_ + k) % size;
      std::memcpy(data + begin(p), theirs[p] + begin(p), (begin(p + 1) - begin(p)) * sizeof(float));
    }
    tell(context, near_, place_, kRead, &word, words.data(), 1);
    return time;
  }

  void addUp(float* data, const std::vector<const float*>& theirs, size_t begin, size_t end) const {
    float total[kBlock];
    for (size_t at = begin; at < end; at += kBlock) {
      size_t count = std::min(kBlock, end - at);
      treeSum(0, static_cast<int>(theirs.size()), count, total, [&](int p, float*) { return theirs[p] + at; });
      std::memcpy(data + at, total, count * sizeof(float));
    }
  }

  const float* memoryOf(int rank, const Whereabouts& at, size_t count) {
    auto& regions = regions_[rank];
    auto found = regions.find(at.key);
    if (found == regions.end()) {
      if (regions.size() >= kMostRegions) { // of memory that has been given back since
        regions.clear();
      }
      auto region = Region::open(at);
      if (region == nullptr) {
        if (Region::exists(at)) { // else it is the death of a rank, of which sharing is not to blame
          giveUp("memory of rank " + std::to_string(rank) + " cannot be mapped");
        }
        throw gloo::IoException("the shared memory of rank " + std::to_string(rank) + " is gone");
      }
      found = regions.emplace(at.key, std::move(region)).first;
    }
    size_t bytes = count * sizeof(float), size = found->second->at.size;
    if (bytes > size || at.offset > size - bytes) {
      throw gloo::IoException("rank " + std::to_string(rank) + " names memory that it does not have");
    }
    return reinterpret_cast<const float*>(found->second->memory + at.offset);
  }

  enum Stage : uint8_t { kReady, kSummed, kRead, kSetUp };

  // Everybody's word to everybody among `members`, of which this process is number `place`.
  static void tell(gloo::Context& context, const std::vector<int>& members, int place, Stage stage, const void* mine,
                   void* all, size_t bytes) {
    int size = static_cast<int>(members.size());
    std::memcpy(static_cast<uint8_t*>(all) + place * bytes, mine, bytes);
    auto buffer = context.createUnboundBuffer(all, bytes * size);
    uint64_t slot = gloo::Slot::build(kSlotPrefix, 0) + static_cast<uint8_t>(stage);
    for (int k = 1; k < size; ++k) {
      int p = (place + k) % size;
      buffer->recv(members[p], slot, p * bytes, bytes);
    }
    for (int k = 1; k < size; ++k) {
      buffer->send(members[(place + k) % size], slot, place * bytes, bytes);
    }
    for (int k = 1; k < size; ++k) {
      buffer->waitRecv();
    }
    for (int k = 1; k < size; ++k) {
      buffer->waitSend();
    }
  }

  int placeIn(const std::vector<int>& members) const {
    return static_cast<int>(std::find(members.begin(), members.end(), rank_) - members.begin());
  }

  // Whether sharing has failed before: then the next round does without, or it would break in the same way.
  static std::atomic<bool>& useless() {
    static std::atomic<bool> failed{false};
    return failed;
  }

  static void giveUp(const std::string& why) {
    useless() = true;
    std::cerr << "hvtrain: ranks of this host add up over loopback from now on, because " << why << std::endl;
  }

  static bool wanted() {
    const char* wish = std::getenv("HVTRAIN_SHARED_MEMORY");
    return !useless() && (wish == nullptr || wish[0] != '0');
  }

  // Tells machines apart, containers with process numbers or networks of their own, and what the launcher calls hosts.
  static uint64_t host() {
    std::string text;
    std::ifstream("/proc/sys/kernel/random/boot_id") >> text;
    for (auto path : {"/proc/self/ns/pid", "/proc/self/ns/net"}) {
      char space[64] = {};
      if (::readlink(path, space, sizeof space - 1) > 0) {
        text += space;
      }
    }
    const char* name = std::getenv("HOROVOD_HOSTNAME");
    text += name == nullptr ? "" : name;
    uint64_t hash = 1469598103934665603ULL; // FNV-1a
    for (unsigned char letter : text) {
      hash = (hash ^ letter) * 1099511628211ULL;
    }
    return hash;
  }

  static constexpr uint8_t kSlotPrefix = 0x49; // none of gloo's own, which count from 1
  // Below so many numbers, three rounds of messages through memory take longer than two with the numbers in them.
  static constexpr size_t kSmall = 1 << 17;
  static constexpr size_t kLine = 16;          // numbers in a line of the cache: no two ranks write into the same one
  static constexpr size_t kMostRegions = 4 * SharedMemory::kMostRegions; // of one rank

  std::weak_ptr<gloo::Context> context_; // its end is not to be put off
  int rank_, place_ = 0;
  bool regular_ = false;
  std::vector<int> everybody_, near_, across_; // all ranks; those of this host; those in this one's place on all hosts
  std::map<int, std::map<uint64_t, std::unique_ptr<Region>>> regions_;
};

} // namespace hvtrain
