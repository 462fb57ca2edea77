"""Edits to what happens to tensors that are outstanding, or still being queued, when the loop ends."""

from __future__ import annotations

from hvtrain.engine.edit import Edit
from hvtrain.engine.edits_rounds import OPERATIONS, QUEUE_CC, QUEUE_H

_WHY_LATE = "a tensor queued in the moment in which the loop ends is never answered, and its owner waits for ever"
_WHY_UNLOCKED = ("giving a tensor back to PyTorch takes Python's lock, which the thread that queues the next tensor "
                 "holds while it waits for the lock of the queue: the process freezes")

QUEUE_EDITS: tuple[Edit, ...] = (
    Edit(
        name="late-tensor", file=QUEUE_H, why=_WHY_LATE,
        anchor="""\
  void FinalizeTensorQueue(const Status& status);
""",
        replacement="""\
  void FinalizeTensorQueue(const Status& status);

  void Open();
"""),
    Edit(
        name="late-tensor", file=QUEUE_H, why=_WHY_LATE,
        anchor="""\
  // Queue of MPI requests waiting to be sent to the coordinator node.
""",
        replacement="""\
  // hvtrain: between FinalizeTensorQueue() and Open() nothing is accepted.
  bool closed_ = false;

  // Queue of MPI requests waiting to be sent to the coordinator node.
"""),
    Edit(
        name="late-tensor", file=QUEUE_CC, why=_WHY_LATE,
        anchor="""\
void TensorQueue::FinalizeTensorQueue(const Status& status) {
  std::lock_guard<std::mutex> guard(mutex_);
""",
        replacement="""\
void TensorQueue::Open() {
  std::lock_guard<std::mutex> guard(mutex_);
  closed_ = false;
}

void TensorQueue::FinalizeTensorQueue(const Status& status) {
  std::unique_lock<std::mutex> guard(mutex_);
  closed_ = true;
"""),
    Edit(
        name="late-tensor", file=QUEUE_CC, why=_WHY_LATE,
        anchor="""\
  std::lock_guard<std::mutex> guard(mutex_);
  if (tensor_table_.find(e.tensor_name) != tensor_table_.end()) {
""",
        replacement="""\
  std::lock_guard<std::mutex> guard(mutex_);
  if (closed_) {
    return SHUT_DOWN_ERROR;
  }
  if (tensor_table_.find(e.tensor_name) != tensor_table_.end()) {
"""),
    Edit(
        name="late-tensor", file=QUEUE_CC, why=_WHY_LATE,
        anchor="""\
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (tensor_table_.find(entries[i].tensor_name) != tensor_table_.end()) {
""",
        replacement="""\
  if (closed_) {
    return SHUT_DOWN_ERROR;
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (tensor_table_.find(entries[i].tensor_name) != tensor_table_.end()) {
"""),
    Edit(
        name="unlocked-end", file=QUEUE_CC, why=_WHY_UNLOCKED,
        anchor="""\
  for (auto& e : tensor_table_) {
    e.second.FinishWithCallback(status);
  }
  tensor_table_.clear();
  while (!message_queue_.empty()) {
    message_queue_.pop();
  }
}
""",
        replacement="""\
  while (!message_queue_.empty()) {
    message_queue_.pop();
  }
  TensorTable outstanding; // hvtrain: callbacks and tensors may need any lock
  outstanding.swap(tensor_table_);
  guard.unlock();
  for (auto& e : outstanding) {
    e.second.FinishWithCallback(status);
  }
}
"""),
    Edit(
        name="unlocked-end", file=QUEUE_CC, why=_WHY_UNLOCKED,
        anchor="""\
void TensorQueue::RemoveJoinTensor() {
  // Lock on the tensor table.
  std::lock_guard<std::mutex> guard(mutex_);
  auto iter = tensor_table_.find(JOIN_TENSOR_NAME);
  assert(iter != tensor_table_.end());
  auto& e = iter->second;
  e.FinishWithCallback(Status::OK());
  tensor_table_.erase(iter);
}
""",
        replacement="""\
void TensorQueue::RemoveJoinTensor() {
  // Lock on the tensor table.
  std::unique_lock<std::mutex> guard(mutex_);
  auto iter = tensor_table_.find(JOIN_TENSOR_NAME);
  assert(iter != tensor_table_.end());
  TensorTableEntry e = std::move(iter->second); // hvtrain
  tensor_table_.erase(iter);
  guard.unlock();
  e.FinishWithCallback(Status::OK());
}
"""),
    Edit(
        name="unlocked-end", file=OPERATIONS, why=_WHY_UNLOCKED,
        anchor="""\
  // Signal that shutdown has been requested.
  state.shut_down = true;

""",
        replacement="""\
  // Signal that shutdown has been requested.
  state.shut_down = true;

  // hvtrain: before the table of process sets is locked, for as long as the
  // last lines of it take; whoever queues a tensor needs it, too.
  for (auto id : state.process_set_table.Ids()) {
    state.process_set_table.Get(id).tensor_queue.FinalizeTensorQueue(
        SHUT_DOWN_ERROR);
  }

"""),
    Edit(
        name="late-tensor", file="horovod/common/controller.cc", why=_WHY_LATE,
        anchor="""\
void Controller::Initialize() {
""",
        replacement="""\
void Controller::Initialize() {
  tensor_queue_.Open();
"""),
)
