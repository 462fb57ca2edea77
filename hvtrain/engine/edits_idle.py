"""The edits behind ``HVTRAIN_IDLE_CYCLE_MS``: the background thread sleeps while no tensor is outstanding."""

from __future__ import annotations

from hvtrain.engine.edit import Edit
from hvtrain.engine.edits_rounds import OPERATIONS, QUEUE_CC, QUEUE_H

_WHY_IDLE = "the 1 ms polling loop takes processor time from the computation and delays the first tensor"

IDLE_EDITS: tuple[Edit, ...] = (
    Edit(
        name="idle-wait", file=QUEUE_H, why=_WHY_IDLE,
        anchor="""\
class TensorQueue {
public:
  TensorQueue() = default;
  TensorQueue(const TensorQueue&) = delete;
""",
        replacement="""\
// hvtrain: lets the background thread sleep while no tensor is outstanding.
// Off unless HVTRAIN_IDLE_CYCLE_MS was set when horovod_init() was called.
//
//   background thread                      any other thread
//   Prepare()  forget former wake-ups
//   queues empty, no shutdown asked?       queue a tensor, or ask for shutdown
//   Wait()     until woken or time is up   Wake()
//
// What is queued after Prepare() ends the Wait(), what was queued before it is
// seen by the check between: no wake-up is lost.
class IdleWait {
public:
  static void ReadEnvironment();
  static bool Enabled();
  static void Prepare();
  static void Wait();
  static void Wake();
};

class TensorQueue {
public:
  TensorQueue() = default;
  TensorQueue(const TensorQueue&) = delete;
  bool Empty() const;
"""),
    Edit(
        name="idle-wait", file=QUEUE_CC, why=_WHY_IDLE,
        anchor="""\
// Add a TensorTableEntry as well as its message to the queue.
""",
        replacement="""\
namespace {

struct IdleWaitState {
  std::mutex mutex;
  std::condition_variable condition;
  bool woken = false;
  std::atomic<long> limit_us{0};
};

// Never destroyed: the background thread may outlive static destruction.
IdleWaitState& idle_wait_state() {
  static IdleWaitState* state = new IdleWaitState();
  return *state;
}

} // namespace

void IdleWait::ReadEnvironment() {
  auto text = std::getenv("HVTRAIN_IDLE_CYCLE_MS");
  double ms = text != nullptr ? std::strtod(text, nullptr) : 0.0;
  // At most a second: peers wait for this process's answer that long.
  ms = ms > 0.0 ? std::min(ms, 1000.0) : 0.0;
  idle_wait_state().limit_us = static_cast<long>(ms * 1000.0);
}

bool IdleWait::Enabled() { return idle_wait_state().limit_us > 0; }

void IdleWait::Prepare() {
  auto& state = idle_wait_state();
  std::lock_guard<std::mutex> guard(state.mutex);
  state.woken = false;
}

void IdleWait::Wait() {
  auto& state = idle_wait_state();
  std::unique_lock<std::mutex> lock(state.mutex);
  state.condition.wait_for(lock, std::chrono::microseconds(state.limit_us),
                           [&state] { return state.woken; });
}

void IdleWait::Wake() {
  auto& state = idle_wait_state();
  if (state.limit_us == 0) {
    return;
  }
  {
    std::lock_guard<std::mutex> guard(state.mutex);
    state.woken = true;
  }
  state.condition.notify_all();
}

bool TensorQueue::Empty() const {
  std::lock_guard<std::mutex> guard(mutex_);
  return tensor_table_.empty() && message_queue_.empty();
}

// Add a TensorTableEntry as well as its message to the queue.
"""),
    Edit(
        name="idle-wait", file=QUEUE_CC, why=_WHY_IDLE,
        anchor="""\
#include <assert.h>
""",
        replacement="""\
#include <assert.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
"""),
    Edit(
        name="idle-wait", file=QUEUE_CC, why=_WHY_IDLE,
        anchor="""\
  tensor_table_.emplace(e.tensor_name, std::move(e));
  message_queue_.push(std::move(message));
""",
        replacement="""\
  tensor_table_.emplace(e.tensor_name, std::move(e));
  message_queue_.push(std::move(message));
  IdleWait::Wake();
"""),
    Edit(
        name="idle-wait", file=QUEUE_CC, why=_WHY_IDLE,
        anchor="""\
    message_queue_.push(std::move(messages[i]));
""",
        replacement="""\
    message_queue_.push(std::move(messages[i]));
    IdleWait::Wake();
"""),
    Edit(
        name="idle-wait", file=OPERATIONS, why=_WHY_IDLE,
        anchor="""\
    horovod_global.background_thread =
        std::thread(BackgroundThreadLoop, std::ref(horovod_global));
""",
        replacement="""\
    IdleWait::ReadEnvironment();
    horovod_global.background_thread =
        std::thread(BackgroundThreadLoop, std::ref(horovod_global));
"""),
    Edit(
        name="idle-wait", file=OPERATIONS, why=_WHY_IDLE,
        anchor="""\
  if (sleep_duration > std::chrono::steady_clock::duration::zero()) {
    std::this_thread::sleep_for(sleep_duration);
  }
""",
        replacement="""\
  bool idle = IdleWait::Enabled();
  if (idle) {
    IdleWait::Prepare();
    idle = !state.shut_down;
    for (auto process_set_id : state.process_set_table.Ids()) {
      idle = idle &&
             state.process_set_table.Get(process_set_id).tensor_queue.Empty();
    }
  }
  if (idle) {
    IdleWait::Wait();
  } else if (sleep_duration > std::chrono::steady_clock::duration::zero()) {
    std::this_thread::sleep_for(sleep_duration);
  }
"""),
    Edit(
        name="idle-wait", file=OPERATIONS, why=_WHY_IDLE,
        anchor="""\
    horovod_global.shut_down = true;
    horovod_global.background_thread.join();
""",
        replacement="""\
    horovod_global.shut_down = true;
    IdleWait::Wake();
    horovod_global.background_thread.join();
"""),
)
