// Memory that processes of one host share: who owns it may write, the others read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace hvtrain {

// Where a piece of memory lies that other processes of the host can map. `key` is the file's random name.
struct Whereabouts {
  int32_t pid, fd;
  uint64_t key, size, offset;
};

// A file in memory, mapped. It is gone with the last process that maps it, however that ends.
class Region {
 public:
  // Null if there is no memory.
  static std::unique_ptr<Region> make(size_t bytes) {
    std::random_device random;
    uint64_t key = (static_cast<uint64_t>(random()) << 32) | random();
    size_t size = (bytes + 4095) / 4096 * 4096;
    int fd = static_cast<int>(::syscall(SYS_memfd_create, name(key).c_str(), 1U /* MFD_CLOEXEC */));
    if (fd < 0) {
      return nullptr;
    }
    std::unique_ptr<Region> region;
    // Space that is only promised would end the process at the first write, when there is none.
    if (::ftruncate(fd, static_cast<off_t>(size)) == 0 &&
        (::fallocate(fd, 0, 0, static_cast<off_t>(size)) == 0 || errno == EOPNOTSUPP || errno == ENOSYS)) {
      region = map(fd, PROT_READ | PROT_WRITE, Whereabouts{static_cast<int32_t>(::getpid()), fd, key, size, 0});
    }
    if (region == nullptr) {
      ::close(fd);
    }
    return region;
  }

  // The memory of another process, to be read; null if it cannot be had. In another process's name space the pid may
  // be anybody's: nothing is opened before its name has been found to be the right one.
  static std::unique_ptr<Region> open(const Whereabouts& at) {
    std::string path = "/proc/" + std::to_string(at.pid) + "/fd/" + std::to_string(at.fd);
    if (!leadsTo(path, at.key)) {
      return nullptr;
    }
    int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
      return nullptr;
    }
    struct stat found; // the number may have become another file's in between
    bool right = leadsTo("/proc/self/fd/" + std::to_string(fd), at.key) && ::fstat(fd, &found) == 0 &&
                 static_cast<uint64_t>(found.st_size) >= at.size;
    auto region = right ? map(fd, PROT_READ, at) : nullptr;
    ::close(fd);
    return region;
  }

  // Whether the memory is there to be mapped: if not, its owner has gone, or has given it back.
  static bool exists(const Whereabouts& at) {
    return leadsTo("/proc/" + std::to_string(at.pid) + "/fd/" + std::to_string(at.fd), at.key);
  }

  Region(const Region&) = delete;
  ~Region() {
    ::munmap(memory, at.size);
    if (at.pid == ::getpid()) {
      ::close(at.fd);
    }
  }

  const Whereabouts at;
  uint8_t* const memory;

 private:
  Region(const Whereabouts& where, uint8_t* start) : at(where), memory(start) {}

  static std::string name(uint64_t key) {
    char text[40];
    std::snprintf(text, sizeof text, "hvtrain-%016llx", static_cast<unsigned long long>(key));
    return text;
  }

  static bool leadsTo(const std::string& path, uint64_t key) {
    char target[128];
    ssize_t length = ::readlink(path.c_str(), target, sizeof target);
    std::string expected = "/memfd:" + name(key);
    return length >= 0 &&
           std::string(target, static_cast<size_t>(length)).compare(0, expected.size(), expected) == 0;
  }

  static std::unique_ptr<Region> map(int fd, int protection, const Whereabouts& at) {
    void* start = ::mmap(nullptr, at.size, protection, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (start == MAP_FAILED) {
      return nullptr;
    }
    return std::unique_ptr<Region>(new Region(at, static_cast<uint8_t*>(start)));
  }
};

// This process's own shared memory: what was asked for, so that buffers lie in it from the beginning, and a piece for
// those that do not.
class SharedMemory {
 public:
  // Zeroed; null if there is none, or if there are so many pieces already that file descriptors might run out.
  uint8_t* allocate(size_t bytes) {
    auto region = Region::make(bytes);
    std::lock_guard<std::mutex> guard(mutex_);
    if (region == nullptr || regions_.size() >= kMostRegions) {
      return nullptr;
    }
    regions_.push_back(std::move(region));
    return regions_.back()->memory;
  }

  void release(const void* memory) {
    std::lock_guard<std::mutex> guard(mutex_);
    regions_.erase(std::remove_if(regions_.begin(), regions_.end(),
                                  [&](const std::unique_ptr<Region>& each) { return each->memory == memory; }),
                   regions_.end());
  }

  // Whether `bytes` bytes at `data` lie in it, and where.
  bool find(const void* data, size_t bytes, Whereabouts& where) {
    std::lock_guard<std::mutex> guard(mutex_);
    auto start = static_cast<const uint8_t*>(data);
    for (auto& region : regions_) {
      if (start >= region->memory && start + bytes <= region->memory + region->at.size) {
        where = region->at;
        where.offset = static_cast<uint64_t>(start - region->memory);
        return true;
      }
    }
    return false;
  }

  // A piece for one operation at a time; null if there is no memory.
  Region* staging(size_t bytes) {
    if (staging_ == nullptr || staging_->at.size < bytes) {
      staging_.reset();
      staging_ = Region::make(bytes);
    }
    return staging_.get();
  }

  static SharedMemory& instance() { // never destroyed: the engine's thread may outlive static destruction
    static SharedMemory* memory = new SharedMemory();
    return *memory;
  }

  static constexpr size_t kMostRegions = 64;

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Region>> regions_;
  std::unique_ptr<Region> staging_;
};

} // namespace hvtrain
