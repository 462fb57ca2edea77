"""What the conformance suite needs of each framework, and an adapter that is driven step by step, without a loop."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Mapping, Sequence

import numpy as np

from hvtrain import Job, adapters
from hvtrain.adapters.base import Adapter, Reduced
from hvtrain.engine.world import SoloWorld, World
from hvtrain.errors import RoundBroken
from tests.support.digits import common

FRAMEWORKS = ("torch", "keras", "numpy")
SAMPLES = 24
"""In the global batch of every step."""
COMM = {"bucket_mb": 0.004, "first_bucket_mb": 0.001, "shared_memory": False}
"""Three buckets; and Horovod's library is not loaded, of which a process can only have one."""
BUCKETS = 3


@dataclass(frozen=True)
class Kit:
    """A framework. ``module`` is the one of :mod:`tests.support.digits` for it, which has:

    ``Digits(norm, dropout, given)``: the task, with BatchNorm, with dropout; unless ``given``, the framework draws the
    first weights. ``read(blobs)``: weights by the common names. ``half_works()``: whether it computes in float16 here.
    ``tidy()``: undo what building has left.

    ``ticks`` has an entry for every micro-batch that an adapter has reported.
    """

    name: str
    module: ModuleType
    ticks: list[str] = field(default_factory=list)

    def adapter(self, task: Mapping[str, Any], **sections: Any) -> Adapter:
        """A built adapter, alone in its world, that has traced what it has to trace."""
        job = Job.model_validate({
            "framework": self.name, "task": {"target": "t:T"}, "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
            **sections, "comm": {**COMM, **sections.get("comm", {})}})
        try:
            made = adapters.make(self.name, job=job, task=self.module.Digits(**task), threads=1,
                                 tick=lambda: self.ticks.append(self.name))
            made.build()
            made.join(SoloWorld())
            made.warm_up(lambda: (batch(range(SAMPLES)), SAMPLES))
            return made
        finally:
            self.module.tidy()


def load(name: str) -> Kit:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    return Kit(name, importlib.import_module(f"tests.support.digits.in_{name}"))


class Pool:
    """Adapters that tests use one after the other, because building one costs more than most tests.

    Each begins as it was built.
    """

    def __init__(self, kit: Kit):
        self._kit = kit
        self._idle: dict[str, list[Any]] = {}
        self._lent: list[tuple[str, Any]] = []

    def take(self, count: int, task: Mapping[str, Any], **sections: Any) -> list[Adapter]:
        key = json.dumps([task, sections], sort_keys=True)
        idle = self._idle.setdefault(key, [])
        while len(idle) < count:
            made = self._kit.adapter(task, **sections)
            idle.append((made, made.export(), json.dumps(made.scalars())))
        taken, self._idle[key] = idle[:count], idle[count:]
        for adapter, groups, scalars in taken:
            adapter.restore(groups, json.loads(scalars))
            adapter.join(SoloWorld())
        self._lent += [(key, each) for each in taken]
        return [adapter for adapter, _, _ in taken]

    def give_back(self) -> None:
        """The test is over."""
        for key, each in self._lent:
            self._idle[key].append(each)
        self._lent = []


def batch(samples: Sequence[int], factor: float = 1.0) -> tuple[np.ndarray, ...]:
    """These samples, their losses multiplied by ``factor``."""
    chosen = np.asarray(samples, np.int64)
    images, labels = common.training()
    return images[chosen], labels[chosen], np.full(len(chosen), factor, np.float32)


def pieces(*sizes: int, first: int = 0) -> list[range]:
    """Micro-batches of these sizes, one after the other."""
    found = []
    for size in sizes:
        found.append(range(first, first + size))
        first += size
    return found


class Rank:
    """An adapter in a world; ``step`` is the next one. Unless told otherwise it has all samples in one micro-batch."""

    def __init__(self, kit: Kit, adapter: Adapter, world: World | None = None):
        self.kit, self.adapter, self.step = kit, adapter, 0
        self.metrics: Mapping[str, float] = {}
        adapter.join(world or SoloWorld())

    def gradients(self, share: Sequence[Sequence[int]] | None = None, *, factor: float = 1.0,
                  flags: Sequence[float] = (0.0,), total: int = SAMPLES) -> Reduced:
        """``share``: this rank's micro-batches, as the samples in each; ``total``: the samples of all ranks."""
        self.adapter.seed(self.step)
        share = pieces(SAMPLES) if share is None else share
        return self.adapter.gradients([batch(piece, factor) for piece in share], [len(piece) for piece in share],
                                      total, flags)

    def apply(self, factor: float = 1.0) -> Mapping[str, float]:
        self.metrics = self.adapter.apply(self.step, factor)
        self.step += 1
        return self.metrics

    def train(self, steps: int = 1, share: Sequence[Sequence[int]] | None = None) -> list[float]:
        """Take so many steps; their losses."""
        found = []
        for _ in range(steps):
            found.append(self.gradients(share).loss)
            self.apply()
        return found

    def weights(self, group: str = "model") -> dict[str, np.ndarray]:
        """By the common names."""
        return self.kit.module.read(self.adapter.export()[group])

    def tensors(self) -> dict[str, str]:
        """All tensors that a checkpoint would hold, hashed, by group and name."""
        return {f"{group}/{name}": hashlib.sha256(bytes(blob.data)).hexdigest()
                for group, blobs in self.adapter.export().items() for name, blob in blobs.items()}

    def state(self) -> dict[str, str]:
        """All that a checkpoint would hold."""
        return {**self.tensors(), "scalars": json.dumps(self.adapter.scalars(), sort_keys=True)}


class Breaking(SoloWorld):
    """Raises RoundBroken when the ``number``-th sum (from 1) is asked for, or waited for: ``where`` start or wait."""

    def __init__(self, where: str, number: int):
        self._where, self._left = where, number

    def sum_async(self, tensor: Any, name: str, codec: str = "none") -> None:
        tensor *= 2  # another rank has the same gradients; this one must not keep any of it
        self._count("start")

    def wait(self, handle: Any) -> None:
        self._count("wait")

    def _count(self, where: str) -> None:
        self._left -= where == self._where
        if self._left == 0:
            raise RoundBroken("this test wants it so")


class Seat(SoloWorld):
    """One seat of a world in which nobody else is."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
