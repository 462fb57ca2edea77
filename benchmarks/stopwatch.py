"""The one stopwatch that all contestants use: it is told of every completed step, in every worker."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Callable

RESULT = "BENCH_RESULT"
"""Names the file that workers append their findings to, one JSON object a line."""

WARMUP = 3
"""Steps before the clock starts."""


class Stopwatch:
    """Notes when the first step was done, and the wall time from step 3 to the last one, after barriers.

    ::

        step   1     2     3 |barrier|  4   5   ...   last |barrier|
               |                     start                       stop
            first step (by time.time(), for startup.py)
    """

    def __init__(self, rank: int, steps: int, barrier: Callable[[], None]):
        self._rank, self._steps, self._barrier = rank, steps, barrier
        self._done = 0
        self._start = self._cpu = 0.0
        self._stamps: list[float] = []

    def step_done(self, model: Any, optimizer: Any) -> None:
        """To be called right after the update. ``model`` and ``optimizer`` are PyTorch's or Keras's."""
        self._done += 1
        if self._done == 1:
            self._write(event="first_step", time=time.time())
        if self._done == min(WARMUP, self._steps - 1):
            self._barrier()
            self._start, self._cpu = time.perf_counter(), time.process_time()
        elif self._done > WARMUP:
            self._stamps.append(time.perf_counter())
        if self._done == self._steps:
            self._barrier()
            seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
            times = [b - a for a, b in zip([self._start, *self._stamps], self._stamps)]
            self._write(event="steady", steps=self._steps - WARMUP, seconds=seconds, cpu_seconds=cpu,
                        step_seconds=times, **_description(model, optimizer))

    def _write(self, **finding: object) -> None:
        line = json.dumps({"rank": self._rank, **finding}) + "\n"
        file = os.open(os.environ[RESULT], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(file, line.encode())
        os.close(file)


def _description(model: Any, optimizer: Any) -> dict[str, Any]:
    if hasattr(model, "count_params"):  # Keras
        import tensorflow as tf

        return {"parameters": model.count_params(), "threads": tf.config.threading.get_intra_op_parallelism_threads(),
                "fused": False}
    import torch

    return {"parameters": sum(p.numel() for p in model.parameters()), "threads": torch.get_num_threads(),
            "fused": bool(optimizer.param_groups[0].get("fused"))}
