"""The edit behind every adapter but PyTorch's: sums and broadcasts of plain memory, without a framework's tensors.

Horovod's operations take tensors of PyTorch or TensorFlow. ``native/hvtrain_host.h`` hands plain memory to the same
queue, and lets a caller wait for the end of an operation without polling.
"""

from __future__ import annotations

from pathlib import Path

from hvtrain.engine.edit import Addition, Change, Edit
from hvtrain.engine.edits_rounds import OPERATIONS

_HEADER = Path(__file__).parent / "native" / "hvtrain_host.h"
_WHY = ("a tensor of TensorFlow's is copied in and out and cannot be summed in place, NumPy's arrays cannot be summed at "
        "all, and who waits for an operation has to poll")

HOST_EDITS: tuple[Change, ...] = (
    Addition(name="host", file=f"horovod/common/ops/{_HEADER.name}", source=_HEADER, why=_WHY),
    Edit(
        name="host", file=OPERATIONS, why=_WHY,
        anchor="""\
int horovod_size() {
""",
        replacement="""\
#if HAVE_GLOO
// hvtrain: see ops/hvtrain_host.h
int64_t horovod_host_sum(void* data, int64_t count, int type,
                         const char* name) {
  auto tensor = std::make_shared<hvtrain::HostTensor>(
      data, count, static_cast<DataType>(type));
  return hvtrain::Tickets::instance().begin([&](StatusCallback callback) {
    return EnqueueTensorAllreduce(std::make_shared<hvtrain::HostContext>(),
                                  tensor, tensor, ReadyEventList(), name,
                                  CPU_DEVICE_ID, callback, ReduceOp::SUM);
  });
}

int64_t horovod_host_broadcast(void* data, int64_t count, int type, int root,
                               const char* name) {
  auto tensor = std::make_shared<hvtrain::HostTensor>(
      data, count, static_cast<DataType>(type));
  return hvtrain::Tickets::instance().begin([&](StatusCallback callback) {
    return EnqueueTensorBroadcast(std::make_shared<hvtrain::HostContext>(),
                                  tensor, tensor, root, ReadyEventList(), name,
                                  CPU_DEVICE_ID, callback);
  });
}

int horovod_host_wait(int64_t ticket, int64_t microseconds, char* reason,
                      int64_t room) {
  return hvtrain::Tickets::instance().wait(ticket, microseconds, reason, room);
}
#endif // HAVE_GLOO

int horovod_size() {
"""),
    Edit(
        name="host", file=OPERATIONS, why=_WHY,
        anchor="""\
#include "ops/gloo_operations.h"
""",
        replacement="""\
#include "ops/gloo_operations.h"
#include "ops/hvtrain_host.h"
"""),
)
