// Sums and broadcasts of plain memory, in place: for callers that have no tensors of a framework, or do not want to
// have a thread of ours give them back, for which it would need the framework's locks, or Python's.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace hvtrain {

namespace hvd = horovod::common;

// Memory of the caller's, which lives until the operation's ticket has been answered.
class HostTensor : public hvd::Tensor {
 public:
  HostTensor(void* data, int64_t count, hvd::DataType type) : data_(data), count_(count), type_(type) {}
  const hvd::DataType dtype() const override { return type_; }
  const hvd::TensorShape shape() const override { return hvd::TensorShape({count_}); }
  const void* data() const override { return data_; }
  int64_t size() const override { return count_ * hvd::DataType_Size(type_); }

 private:
  void* data_;
  int64_t count_;
  hvd::DataType type_;
};

class OwnedBuffer : public hvd::PersistentBuffer {
 public:
  explicit OwnedBuffer(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {}
  const void* AccessData(std::shared_ptr<hvd::OpContext>) const override { return bytes_.data(); }

 private:
  std::vector<uint8_t> bytes_;
};

// The operations that are offered here have their output given; only the fusion buffer, if there is one, is allocated.
class HostContext : public hvd::OpContext {
 public:
  using hvd::OpContext::AllocateOutput;
  hvd::Status AllocatePersistent(int64_t size, std::shared_ptr<hvd::PersistentBuffer>* buffer) override {
    *buffer = std::make_shared<OwnedBuffer>(size);
    return hvd::Status::OK();
  }
  hvd::Status AllocateOutput(hvd::TensorShape, std::shared_ptr<hvd::Tensor>*,
                             std::shared_ptr<hvd::ReadyEvent>*) override {
    return refused();
  }
  hvd::Status AllocateZeros(int64_t, hvd::DataType, std::shared_ptr<hvd::Tensor>*) override { return refused(); }
  hvd::Framework framework() const override { return hvd::Framework::PYTORCH; } // part of a fusion buffer's key only

 private:
  static hvd::Status refused() { return hvd::Status::InvalidArgument("plain memory is summed and broadcast only"); }
};

// Operations that have been started and not been answered yet. Any thread may start one, and wait for one.
class Tickets {
 public:
  // `enqueue(callback)` hands the operation to Horovod. What it refuses is a ticket that has failed.
  template <typename Enqueue>
  int64_t begin(Enqueue enqueue) {
    int64_t ticket;
    {
      std::lock_guard<std::mutex> guard(mutex_);
      ticket = ++last_;
      open_[ticket] = std::make_shared<Result>();
    }
    hvd::Status status;
    try {
      status = enqueue([this, ticket](const hvd::Status& result) { end(ticket, result); });
    } catch (const std::exception& error) {
      status = hvd::Status::UnknownError(error.what());
    }
    if (!status.ok()) {
      end(ticket, status);
    }
    return ticket;
  }

  // Wait for at most `microseconds`. 1: done, 0: not yet, -1: failed, with the reason in `reason`, -2: no such ticket.
  // Done and failed are said once.
  int wait(int64_t ticket, int64_t microseconds, char* reason, int64_t room) {
    std::unique_lock<std::mutex> lock(mutex_);
    auto found = open_.find(ticket);
    if (found == open_.end()) {
      return -2;
    }
    auto result = found->second;
    if (!ended_.wait_for(lock, std::chrono::microseconds(microseconds), [&result] { return result->ended; })) {
      return 0;
    }
    if (!result->ok && room > 0) {
      std::strncpy(reason, result->reason.c_str(), static_cast<size_t>(room - 1));
      reason[room - 1] = 0;
    }
    open_.erase(ticket);
    return result->ok ? 1 : -1;
  }

  static Tickets& instance() { // never destroyed, as threads may outlive static destruction
    static Tickets* tickets = new Tickets();
    return *tickets;
  }

 private:
  struct Result {
    bool ended = false, ok = false;
    std::string reason;
  };

  void end(int64_t ticket, const hvd::Status& status) {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      auto found = open_.find(ticket);
      if (found == open_.end()) {
        return;
      }
      found->second->ended = true;
      found->second->ok = status.ok();
      found->second->reason = status.reason();
    }
    ended_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable ended_;
  std::map<int64_t, std::shared_ptr<Result>> open_;
  int64_t last_ = 0;
};

} // namespace hvtrain
