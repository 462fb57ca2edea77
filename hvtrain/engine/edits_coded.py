"""The edit behind ``comm.codec``: sums of float32 buffers that are compressed on the wire, and added up in float32.

Horovod's own fp16 compression adds half-precision numbers up, with scalar code on gloo; it knows neither bf16 there
nor int8. An all-reduce whose name begins with ``hvtrain_coded_<codec>.`` is done by ``native/hvtrain_neighbours.h``
instead, host by host; all others are what they were.
"""

from __future__ import annotations

from pathlib import Path

from hvtrain.engine.edit import Addition, Change, Edit
from hvtrain.engine.edits_rounds import OPERATIONS

_GLOO = "horovod/common/ops/gloo_operations.cc"
_NATIVE = Path(__file__).parent / "native"
_WHY = ("fp16 sums are slow and overflow on gloo, bf16 and int8 are missing; ranks of one host talk over loopback, and "
        "numbers cross the network once for each rank")

CODED_EDITS: tuple[Change, ...] = (
    *(Addition(name="coded", file=f"horovod/common/ops/{name}", source=_NATIVE / name, why=_WHY)
      for name in ("hvtrain_codecs.h", "hvtrain_tree.h", "hvtrain_exchange.h", "hvtrain_memory.h",
                   "hvtrain_neighbours.h", "hvtrain_reduction.h")),
    Edit(
        name="coded", file=_GLOO, why=_WHY,
        anchor="""\
  gloo_algos->Allreduce(buffer_data, num_elements, glooOp);
""",
        replacement="""\
  // hvtrain: see hvtrain_reduction.h
  auto& reductions = hvtrain::Reductions::instance();
  hvtrain::Codec codec;
  int64_t begun = hvtrain::nanoseconds(), coding = 0;
  if (entries.size() != 1 || glooOp != ReduceOp::SUM ||
      first_entry.tensor->dtype() != HOROVOD_FLOAT32 ||
      !hvtrain::Reductions::codecOf(first_entry.tensor_name, codec) ||
      !reductions.sum(gloo_context.ctx, codec, first_entry.tensor_name,
                      static_cast<float*>(buffer_data),
                      (size_t)NumElements(entries), coding)) {
    if (NumElements(entries) > std::numeric_limits<int>::max()) {
      throw std::length_error("gloo's own all-reduce takes at most 2^31 numbers");
    }
    gloo_algos->Allreduce(buffer_data, num_elements, glooOp);
  }
  reductions.done(first_entry.tensor_name, begun, coding,
                  NumElements(entries) * gloo_algos->ElementSize());
"""),
    Edit(
        name="coded", file=_GLOO, why=_WHY,
        anchor="""\
#include "../common.h"
#include "../global_state.h"
""",
        replacement="""\
#include "../common.h"
#include "../global_state.h"
#include "hvtrain_reduction.h"

#include <limits>
"""),
    Edit(
        name="coded", file=OPERATIONS, why=_WHY,
        anchor="""\
shutdown:
  // Finalize all contexts
""",
        replacement="""\
shutdown:
#if HAVE_GLOO
  hvtrain::Reductions::instance().leave(); // hvtrain
#endif
  // Finalize all contexts
"""),
    Edit(
        name="coded", file=OPERATIONS, why=_WHY,
        anchor="""\
int horovod_rank() {
""",
        replacement="""\
#if HAVE_GLOO
// hvtrain: see ops/hvtrain_reduction.h and ops/hvtrain_codecs.h
void horovod_coded_seed(uint64_t seed) {
  hvtrain::Reductions::instance().seed(seed);
}

void horovod_spans_record(int on) {
  hvtrain::Reductions::instance().record(on != 0);
}

int64_t horovod_spans_take(hvtrain::Span* out, int64_t room) {
  return hvtrain::Reductions::instance().take(out, room);
}

int64_t horovod_reductions_busy() {
  return hvtrain::Reductions::instance().busy();
}

// Memory that other processes of the host can read; null if there is none.
void* horovod_shared_allocate(int64_t bytes) {
  try {
    return hvtrain::SharedMemory::instance().allocate((size_t)bytes);
  } catch (const std::exception&) { // nobody above can catch it
    return nullptr;
  }
}

void horovod_shared_release(void* memory) {
  hvtrain::SharedMemory::instance().release(memory);
}

int64_t horovod_codec_bytes(int codec, int64_t count) {
  return (int64_t)hvtrain::wireBytes(static_cast<hvtrain::Codec>(codec),
                                     (size_t)count);
}

void horovod_codec_encode(int codec, const float* in, int64_t count,
                          uint32_t seed, uint8_t* out) {
  hvtrain::Chunk{static_cast<hvtrain::Codec>(codec), out, (size_t)count}
      .encode(in, seed, 0);
}

void horovod_codec_decode(int codec, uint8_t* in, int64_t count, float* out) {
  hvtrain::Chunk{static_cast<hvtrain::Codec>(codec), in, (size_t)count}
      .decode(out);
}

// Whether vector instructions are used; returns whether they are now.
int horovod_codec_wide(int on) {
  return (hvtrain::wideEnabled() = hvtrain::wideSupported() && on != 0);
}
#endif // HAVE_GLOO

int horovod_rank() {
"""),
    Edit(
        name="coded", file=OPERATIONS, why=_WHY,
        anchor="""\
#include "ops/gloo_operations.h"
""",
        replacement="""\
#include "ops/gloo_operations.h"
#include "ops/hvtrain_reduction.h"
"""),
)
