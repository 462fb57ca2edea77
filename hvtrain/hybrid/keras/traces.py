r"""What each stage runs, traced once for all micro-batches of one kind: a forward and a backward function.

::

    forward   stage 0  batch --> pipeline, links --> values 1, 2
              stage 1                                  1, 2 --> links --> value 3
              stage 2                                           1, 3 --> links, loss      (1 goes past stage 1)

    backward  stage 0 <-- d1, d2 -- stage 1 <-- d1, d3 -- stage 2      sums so far, of values' and variables' gradients

Forward writes what its links have changed (statistics) into its variables at its end, so that a stage's micro-batches
follow each other as in one long pass. Backward adds the gradients of the stage's variables to those of the
micro-batches before.

Which gradients come from later stages is known once these are traced: each is traced within the one before it.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Mapping, Sequence

import tensorflow as tf

from hvtrain.adapters.keras import pipeline
from hvtrain.errors import Uncuttable
from hvtrain.hybrid.keras.crossing import Shapes, spec
from hvtrain.hybrid.keras.halves import Halves
from hvtrain.hybrid.keras.links import Chain
from hvtrain.hybrid.keras.passes import LOSS, NUMBER, MicroBatch, Passes, Step, Taped, copy, enters
from hvtrain.hybrid.keras.stages import Stage
from hvtrain.task import Task

BATCH = -3
"""The number of the value that the batch is, for the loss."""
FRAMES = 60
"""Of Python's stack, at the most that tracing a stage takes until the next one's begins."""


@dataclass(frozen=True)
class Plan:
    """What is traced: ``steps`` of each of ``stages``; ``owned`` are the numbers of the variables that lie in each.

    ``seeds`` is how many a micro-batch has.
    """

    task: Task
    chain: Chain
    stages: Sequence[Stage]
    steps: Sequence[Sequence[Step]]
    trainable: Sequence[Any]
    owned: Sequence[Sequence[int]]
    seeds: int
    recompute: bool
    name_of: Callable[[Any], str]


@dataclass
class StageTrace:
    """The functions of one stage.

    forward     [seeds, weight, *takes] -> [*gives, terms?, number?]
    backward    [weight, scale, first, *upstream, *shared, *before] -> [*entering, *passed, *totals]

    ``takes`` and ``gives`` are values, ``upstream`` and ``entering`` gradients of values, all by the values' numbers.
    ``shared`` and ``passed`` are gradients of variables: from later stages, and for earlier ones, where they lie.
    ``owned`` are the variables that lie here and ``totals`` those that have a gradient, by the variables' numbers; in the
    first micro-batch anything may be given ``before``.
    """

    halves: Halves
    takes: Shapes
    gives: Shapes
    terms: bool
    upstream: list[int]
    entering: list[int]
    shared: list[int]
    passed: list[int]
    owned: list[int]
    totals: list[int]


@dataclass
class _Later:
    """What is known of the stages after one: gradients that come from them, of values and of variables (by number)."""

    values: dict[int, tf.TensorSpec]
    variables: dict[int, tf.TensorSpec]


def trace(plan: Plan, batch: Any) -> list[StageTrace]:
    """Trace all stages for batches as ``batch``, a structure of tensors' specifications.

    Raises Uncuttable for variables that are changed in one stage and used in another.
    """
    tracing = _Tracing(plan)
    with _deep(FRAMES * len(plan.stages)):
        tracing.stage(0, Shapes({BATCH: batch}), frozenset())
    tracing.check_users()
    return tracing.found[::-1]


class _Tracing:
    """One traversal of all stages."""

    def __init__(self, plan: Plan):
        self._plan, self.found = plan, []
        self._passes = Passes(plan.trainable)
        self._numbers = {id(variable): number for number, variable in enumerate(plan.trainable)}
        self._written: dict[int, Any] = {}
        self._wanted = [{key for steps in plan.steps[number + 1:] for key in enters(steps)}
                        for number in range(len(plan.stages))]

    def stage(self, number: int, there: Shapes, needed: frozenset[int]) -> _Later:
        """Trace stage ``number`` and those after it. ``there`` is what is at hand, ``needed`` as of MicroBatch."""
        plan, steps = self._plan, self._plan.steps[number]
        last = number == len(plan.stages) - 1
        takes = there.only([BATCH] if number == 0 else [*enters(steps), *([BATCH] if last else [])])
        made: dict[str, Any] = {}

        def forward(halve: Callable, seeds: tf.Tensor, weight: tf.Tensor, *tensors: tf.Tensor) -> list[tf.Tensor]:
            with tf.device(plan.stages[number].device):
                micro = self._micro(number, takes, tensors, seeds, weight, needed)
                if plan.recompute:  # what is kept lies on this device
                    micro.values = {key: copy(value) for key, value in micro.values.items()}
                entering = dict(micro.values)
                taped, before = self._forward(number, micro)
                values = {**micro.values, BATCH: micro.batch}
                gives = Shapes({key: values[key] for key in self._crossing(number, there, values)})
                later = _Later({}, {}) if last else self.stage(
                    number + 1, there.joined(gives), frozenset(micro.needed))
                micro.values = entering
                made["trace"], made["later"] = self._backward(number, micro, taped, before, later, halve)
                made["gives"] = gives
                terms = ([values[LOSS]] if last else []) + micro.losses
                made["terms"] = bool(terms)
                more = [tf.stack(terms)] if terms else []
                return [*gives.tensors, *more, *([values[NUMBER]] if last else [])]

        halves = Halves(forward, [tf.TensorSpec([plan.seeds, 2], tf.uint32), tf.TensorSpec([], tf.float32), *takes.specs])
        self.found.append(StageTrace(halves, takes, made["gives"], made["terms"], **made["trace"]))
        return made["later"]

    def _micro(self, number: int, takes: Shapes, tensors: Sequence[tf.Tensor], seeds: tf.Tensor, weight: tf.Tensor,
               needed: frozenset[int]) -> MicroBatch:
        plan, values = self._plan, takes.pack(tensors)
        batch = values.pop(BATCH, None)
        if number == 0:
            batch = pipeline.through(plan.task, batch, "train", tf.bitcast(seeds[plan.seeds - 1], tf.int32))
            values = plan.chain.begin(plan.task, batch)
        return MicroBatch(batch, seeds, weight, values, needed=set(needed))

    def _crossing(self, number: int, there: Shapes, values: Mapping[int, Any]) -> list[int]:
        """What this stage makes of what later ones take."""
        if number == len(self._plan.stages) - 1:
            return []
        wanted = self._wanted[number] | ({BATCH} if number == 0 and pipeline.used(self._plan.task) else set())
        return sorted(key for key in wanted if key in values and (number == 0 or key not in there))

    def _forward(self, number: int, micro: MicroBatch) -> tuple[list[Taped], dict[int, Any]]:
        """Run the links; also what the variables that they change held before, where that is needed again."""
        passes = self._passes
        passes.state = {}
        taped = passes.forward(number, self._plan.steps[number], micro)
        before = {key: tf.identity(variable.value) for key, (variable, _) in passes.state.items()
                  } if self._plan.recompute else {}
        for key, (variable, value) in passes.state.items():
            self._written[key] = variable
            with tf.device(variable.value.device):
                variable.assign(value)
        return taped, before

    def _backward(self, number: int, micro: MicroBatch, taped: list[Taped], before: Mapping[int, Any], later: _Later,
                  halve: Callable) -> tuple[dict[str, list[int]], _Later]:
        plan = self._plan
        steps, owned, last = plan.steps[number], list(plan.owned[number]), number == len(plan.stages) - 1
        mine = {key for step in steps for key in (*step.takes, *step.gives)}
        used = {self._numbers[id(variable)] for link in taped for variable in link.used} | set(owned)
        upstream = [key for key in later.values if key in mine]
        shared = [key for key in later.variables if key in used]
        found: dict[str, list[int]] = {}
        specs: dict[str, list[tf.TensorSpec]] = {}

        def backward(weight: tf.Tensor, scale: tf.Tensor, first: tf.Tensor, *tensors: tf.Tensor) -> list[tf.Tensor]:
            with tf.device(plan.stages[number].device):
                micro.weight = weight
                micro.gradients = dict(zip(upstream, tensors))
                micro.variables = {id(plan.trainable[key]): tensor
                                   for key, tensor in zip(shared, tensors[len(upstream):])}
                if last:
                    micro.gradients[LOSS] = scale
                again = self._passes.again(steps, micro, before) if plan.recompute else taped
                self._passes.backward(again, micro, scale)
                variables = {self._numbers[key]: gradient for key, gradient in micro.variables.items()}
                sums = tensors[len(upstream) + len(shared):]
                totals = [key for key in owned if key in variables]
                found.update(entering=list(micro.gradients), totals=totals,
                             passed=[key for key in variables if key not in owned])
                gradients = [micro.gradients[key] for key in found["entering"]]
                passed = [variables[key] for key in found["passed"]]
                specs.update(entering=list(map(spec, gradients)), passed=list(map(spec, passed)))
                return [*gradients, *passed, *_added(first, [variables[key] for key in totals],
                                                     [sums[owned.index(key)] for key in totals])]

        scalar = tf.TensorSpec([], tf.float32)
        halve(backward, [
            scalar, scalar, tf.TensorSpec([], tf.bool), *(later.values[key] for key in upstream),
            *(later.variables[key] for key in shared),
            *(tf.TensorSpec(None, plan.trainable[key].value.dtype) for key in owned)])
        made = {key for step in steps for key in step.gives}
        values = {key: one for key, one in later.values.items() if key not in made}
        variables = {key: one for key, one in later.variables.items() if key not in owned}
        return ({"upstream": upstream, "shared": shared, "owned": owned, **found},
                _Later(values | dict(zip(found["entering"], specs["entering"])),
                       variables | dict(zip(found["passed"], specs["passed"]))))

    def check_users(self) -> None:
        for key, variable in self._written.items():
            users = sorted(self._passes.users[key])
            if len(users) > 1:
                raise Uncuttable(
                    f"the variable {self._plan.name_of(variable)!r}, which the forward pass changes, is used by links of "
                    f"the stages {' and '.join(map(str, users))}, so that they would have to wait for each other. "
                    "Choose hybrid.split so that these links lie in one stage, or give each a layer of its own")


def _added(first: tf.Tensor, gradients: list[tf.Tensor], before: list[tf.Tensor]) -> list[tf.Tensor]:
    """``before + gradients``; in the ``first`` micro-batch the ``gradients`` alone."""
    if not gradients:
        return []
    return tf.cond(first, lambda: [tf.identity(one) for one in gradients],
                   lambda: [sum_ + one for sum_, one in zip(before, gradients)])


@contextmanager
def _deep(frames: int) -> Iterator[None]:
    """Room for so many more frames on Python's stack."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
