"""The passes of one micro-batch through the links of a stage, forward and backward, while a graph is traced.

Each link has a tape of its own, and what it takes is copied (by name only: ``tf.identity``)::

    forward    value 0 --tape--> value 1 --tape--> value 2 --tape--> loss
    backward   d0 <------------- d1 <------------- d2 <------------- share * factor
                      +-> variables       +-> variables

So gradients that meet, of a value or of a variable that several links use, are added in one order wherever the cuts
are: the same bits for any number of stages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Mapping, Sequence

import tensorflow as tf
from keras import tree
from keras.src import backend

from hvtrain.hybrid.keras.links import Chain, Link
from hvtrain.hybrid.keras.purity import Pure

LOSS, NUMBER = -1, -2
"""The values that the sum of the losses is, and how many there were."""


@dataclass
class MicroBatch:
    """What there is of a micro-batch while it goes through the stages.

    ``seeds`` has a row for each link; ``weight`` is the number of samples. ``values`` and their ``gradients`` go by number,
    gradients of ``variables`` by the variable's identity; ``needed`` are the values that trainable variables go into.
    ``losses`` are scalars that layers have added, times the weight.
    """

    batch: Any
    seeds: tf.Tensor
    weight: tf.Tensor
    values: dict[int, Any]
    gradients: dict[int, tf.Tensor] = field(default_factory=dict)
    variables: dict[int, tf.Tensor] = field(default_factory=dict)
    needed: set[int] = field(default_factory=set)
    losses: list[tf.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """A link as it is run: ``call`` makes the values ``gives`` of the values ``takes``. ``number`` is the link's."""

    number: int
    call: Callable[[MicroBatch, Mapping[int, Any]], Sequence[Any]]
    takes: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True)
class Taped:
    """A link that has been run: what gradients come from, and the ``inputs`` and ``used`` variables that they are for."""

    tape: tf.GradientTape
    inputs: Mapping[int, tf.Tensor]
    used: Sequence[Any]
    outputs: Mapping[int, Any]
    losses: Sequence[tf.Tensor]


def plan_of(links: Sequence[Link], first: int) -> list[Step]:
    """Links as they are run in training, the first of them number ``first``."""
    return [Step(number, lambda micro, values, link=link: link(values, True), link.takes, link.gives)
            for number, link in enumerate(links, first)]


def with_loss(chain: Chain, steps: Sequence[Step],
              losses: Callable[[MicroBatch, Mapping[int, Any]], Sequence[Any]]) -> list[Step]:
    """``steps``, the last ones of ``chain``, and what comes after them: the sum of the losses and their number.

    Of a model that is its only link they are one step. Between two only tensors would have gradients, but such a model
    may give any object, or leave the loss something elsewhere.
    """
    if chain.source != "whole":
        return [*steps, Step(len(chain.links), losses, tuple(dict.fromkeys(chain.results)), (LOSS, NUMBER))]
    (step,) = steps

    def call(micro: MicroBatch, values: Mapping[int, Any]) -> list[Any]:
        made = step.call(micro, values)
        return [*made, *losses(micro, dict(zip(step.gives, made)))]

    return [Step(step.number, call, step.takes, (*step.gives, LOSS, NUMBER))]


def enters(steps: Sequence[Step]) -> list[int]:
    """The values that ``steps`` take from elsewhere."""
    made = {key for step in steps for key in step.gives}
    return list(dict.fromkeys(key for step in steps for key in step.takes if key not in made))


class Passes:
    """Runs links of a model whose ``trainable`` variables these are.

    ``state`` has what links have written into other variables so far, as (variable, value) by identity; ``users`` the
    stages that use each of these variables.
    """

    def __init__(self, trainable: Iterable[Any]):
        self._trainable = {id(variable.value): variable for variable in trainable}
        self.state: dict[int, tuple[Any, Any]] = {}
        self.users: dict[int, set[int]] = {}

    def snapshot(self) -> dict[int, Any]:
        """What variables hold by now, where that is not what they held when the step began."""
        return {key: value for key, (_, value) in self.state.items()}

    def forward(self, stage: int, steps: Sequence[Step], micro: MicroBatch) -> list[Taped]:
        """Run ``steps``, as a part of ``stage``."""
        def note(pure: Pure) -> None:
            micro.losses += [tf.cast(tf.reduce_sum(loss), tf.float32) * micro.weight for loss in pure.losses]
            self.state.update({key: (pure.read[key], value) for key, value in pure.written.items()})
            for key in pure.read:
                self.users.setdefault(key, set()).add(stage)

        return self._run(steps, micro, micro.values, self.snapshot(), note)

    def again(self, steps: Sequence[Step], micro: MicroBatch, state: Mapping[int, Any]) -> list[Taped]:
        """Run ``steps`` as they have been run when ``state`` was the :meth:`snapshot`."""
        return self._run(steps, micro, {key: micro.values[key] for key in enters(steps)}, dict(state), lambda pure: None)

    def backward(self, taped: Sequence[Taped], micro: MicroBatch, scale: tf.Tensor) -> list[tf.Tensor]:
        """Backward through links, from the last. ``scale`` is what a sample's loss is multiplied by.

        Returns the tensors that this has made.
        """
        made = []
        for link in reversed(taped):
            pairs = [(value, micro.gradients.pop(key)) for key, value in link.outputs.items() if key in micro.gradients]
            pairs += [(loss, tf.fill(tf.shape(loss), tf.cast(micro.weight * scale, loss.dtype))) for loss in link.losses]
            sources = [*link.inputs.values(), *(variable.value for variable in link.used)]
            if not pairs or not sources:
                continue
            found = link.tape.gradient([value for value, _ in pairs], sources, [upstream for _, upstream in pairs])
            for key, gradient in zip(link.inputs, found):
                if gradient is not None:
                    made.append(_add(micro.gradients, key, gradient))
            for variable, gradient in zip(link.used, found[len(link.inputs):]):
                if gradient is not None:
                    made.append(_add(micro.variables, id(variable), gradient))
        return made

    def _run(self, steps: Sequence[Step], micro: MicroBatch, values: dict[int, Any], state: dict[int, Any],
             note: Callable[[Pure], None]) -> list[Taped]:
        taped = []
        for step in steps:
            with tf.GradientTape() as tape:
                inputs = {key: copy(values[key]) for key in step.takes}
                followed = {key: value for key, value in inputs.items() if key in micro.needed}
                tape.watch(list(followed.values()))
                with Pure(True, state, _seeds(micro.seeds[step.number])) as pure:
                    outputs = dict(zip(step.gives, step.call(micro, inputs)))
            watched = {id(variable) for variable in tape.watched_variables()}
            used = [variable for key, variable in self._trainable.items() if key in watched]
            if used or followed:
                micro.needed.update(key for key, value in outputs.items() if _differentiable(value))
            values.update(outputs)
            state.update(pure.written)
            note(pure)
            taped.append(Taped(tape, followed, used, outputs, pure.losses))
        return taped


def _add(sums: dict[int, tf.Tensor], key: int, gradient: Any) -> tf.Tensor:
    gradient = tf.convert_to_tensor(gradient)  # of a lookup it comes as slices
    sums[key] = sums[key] + gradient if key in sums else gradient
    return sums[key]


def copy(value: Any) -> Any:
    """A structure of tensors under other names, with their masks; on the device of the context."""
    return tree.map_structure(_copied, value)


def _copied(value: Any) -> Any:
    if not tf.is_tensor(value):
        return value
    copied, mask = tf.identity(value), backend.get_keras_mask(value)
    if mask is not None:
        backend.set_keras_mask(copied, mask)
    return copied


def _differentiable(value: Any) -> bool:
    return tf.is_tensor(value) and value.dtype.is_floating


def _seeds(row: tf.Tensor) -> Callable[[int], tf.Tensor]:
    """A seed for each of a link's random generators, of the link's own. uint32, shape (2,)."""
    return lambda generator: row + tf.constant([generator, 0], tf.uint32) if generator else row
