"""A Keras model as a chain of links: its layers in the order in which they run, with the values that go between them.

::

    model       inputs --> dense --> dropout --> add --> dense --> outputs
                              |___________________|
    links       0: dense(0) = 1   1: dropout(1) = 2   2: add(1, 2) = 3   3: dense(3) = 4
    a cut       after link 1 hands on the values 1 and 2

Values are numbered in the order in which they arise, so a cut may be after any link.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import keras
import tensorflow as tf
from keras import tree
from keras.src.models.functional import Functional, operation_fn  # what Sequential models run, too (Keras 3.15)

from hvtrain.adapters.keras import pipeline
from hvtrain.adapters.keras.calling import called, forward, model_inputs
from hvtrain.errors import Uncuttable
from hvtrain.hybrid.keras.purity import Pure
from hvtrain.task import Task

Values = Mapping[int, Any]


@dataclass(frozen=True)
class Link:
    """A layer or an operation: takes the values of these numbers, and gives those."""

    name: str
    operation: Any
    arguments: Callable[[Values], tuple[Sequence[Any], Mapping[str, Any]]]
    takes: tuple[int, ...]
    gives: tuple[int, ...]

    def __call__(self, values: Values, training: bool) -> list[Any]:
        """What the operation makes of ``values``, in the order of ``gives``."""
        positions, keywords = self.arguments(values)
        return tree.flatten(operation_fn(self.operation, training=training)(*positions, **keywords))

    @property
    def variables(self) -> list[Any]:
        return list(getattr(self.operation, "variables", ()))


@dataclass(frozen=True)
class WholeModel(Link):
    """A model, called as ``task`` says: value 0 is all of its inputs, value 1 all of its outputs, whatever they are."""

    task: Task

    def __call__(self, values: Values, training: bool) -> list[Any]:
        return [called(self.task, self.operation, values[0], training)]


@dataclass(frozen=True)
class Chain:
    """``model`` in ``links``. The values from 0 on are its inputs; ``source`` says how the links were found: "Sequential",
    "functional", "layers", "whole"."""

    model: keras.Model
    links: tuple[Link, ...]
    inputs: int
    source: str
    _flat: Callable[[Any], list[Any]]
    _results: tuple[int, ...]
    _pack: Callable[[list[Any]], Any]

    @property
    def names(self) -> list[str]:
        return [link.name for link in self.links]

    @property
    def results(self) -> tuple[int, ...]:
        """The numbers of the values that the model's outputs are made of."""
        return self._results

    def begin(self, task: Task, batch: Any) -> dict[int, Any]:
        """The first values, for a batch."""
        return dict(enumerate(self._flat(model_inputs(task, self.model, batch))))

    def outputs(self, values: Values) -> Any:
        """The model's outputs, as it gives them itself."""
        return self._pack([values[number] for number in self._results])


def chain(model: keras.Model, task: Task, batch: Any) -> Chain:
    """The links of a built ``model``. A subclassed one is called with ``batch`` to see whether its layers are a chain.

    Raises:
        Uncuttable: it cannot be cut, why, and what to do.
    """
    functional = model if isinstance(model, Functional) else getattr(model, "_functional", None)
    own = type(model).call in (Functional.call, keras.Sequential.call)
    if functional is None or not own:
        return _checked(model, task, batch)
    if model.activity_regularizer is not None:
        raise Uncuttable(f"the model {model.name!r} has an activity regularizer of its own, which belongs to no "
                         "layer. Give it to the last layer, or take hybrid=null")
    graph = _Graph()
    for tensor in functional.inputs:
        graph.number(tensor)
    numbers = {id(tensor): graph.numbers[id(tensor)] for tensor in functional.inputs}
    graph.add(functional, numbers, "")
    structure = functional._outputs_struct

    def pack(values: list[Any]) -> Any:
        packed = tree.pack_sequence_as(structure, values)
        return packed[0] if isinstance(packed, list) and len(packed) == 1 else packed

    return Chain(model, tuple(graph.links), len(functional.inputs),
                 "Sequential" if isinstance(model, keras.Sequential) else "functional", functional._standardize_inputs,
                 tuple(numbers[id(tensor)] for tensor in functional.outputs), pack)


def whole(model: keras.Model, task: Task) -> Chain:
    """The model as its only link: for one stage no model has to be cut."""
    link = WholeModel(type(model).__name__, model, lambda values: ((values[0],), {}), (0,), (1,), task)
    return Chain(model, (link,), 1, "whole", lambda inputs: [inputs], (1,), lambda values: values[0])


class _Graph:
    """Collects links from functional models and from those within them."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.numbers: dict[int, int] = {}
        self._next = 0

    def number(self, tensor: Any) -> int:
        self.numbers[id(tensor)] = self._next
        self._next += 1
        return self._next - 1

    def add(self, functional: Any, numbers: dict[int, int], prefix: str) -> None:
        """Add ``functional``'s operations. ``numbers`` has its inputs' numbers by identity, and gets all others'."""
        for depth in sorted(functional._nodes_by_depth, reverse=True):  # the order of Function._run_through_graph
            for node in functional._nodes_by_depth[depth]:
                if not node.operation or node.is_input or any(id(x) not in numbers for x in node.input_tensors):
                    continue
                inner = _nested(node)
                if inner is not None:
                    within = {id(mine): numbers[id(its)] for mine, its in zip(inner.inputs, node.input_tensors)}
                    self.add(inner, within, f"{prefix}{node.operation.name}/")
                    numbers.update({id(its): within[id(mine)] for mine, its in zip(inner.outputs, node.outputs)})
                    continue
                takes = {id(tensor): numbers[id(tensor)] for tensor in node.input_tensors}
                gives = [self.number(tensor) for tensor in node.outputs]
                numbers.update({id(tensor): number for tensor, number in zip(node.outputs, gives)})
                self.links.append(Link(prefix + node.operation.name, node.operation, _filled(node.arguments, takes),
                                       tuple(dict.fromkeys(takes.values())), tuple(gives)))


def _filled(arguments: Any, takes: Mapping[int, int]) -> Callable[[Values], tuple[Any, Any]]:
    return lambda values: arguments.fill_in({key: values[number] for key, number in takes.items()})


def _nested(node: Any) -> Any:
    """The functional model that ``node`` calls, where running its layers is exactly what calling it does; else None."""
    model = node.operation
    if not isinstance(model, keras.Model) or type(model).call not in (Functional.call, keras.Sequential.call):
        return None
    inner = model if isinstance(model, Functional) else model._functional
    told = any(value is not None for value in node.arguments.kwargs.values())  # a mask, or whether it trains
    if inner is None or model.activity_regularizer is not None or told:
        return None
    alike = len(inner.inputs) == len(node.input_tensors) and all(
        mine.dtype == its.dtype and len(mine.shape) == len(its.shape) and getattr(its, "_keras_mask", None) is None
        for mine, its in zip(inner.inputs, node.input_tensors))
    return inner if alike else None


def _checked(model: keras.Model, task: Task, batch: Any) -> Chain:
    """``model.layers`` one after another, if that is what ``model`` does."""
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    links = tuple(Link(layer.name, layer, lambda values, number=number: ((values[number],), {}), (number,), (number + 1,))
                  for number, layer in enumerate(layers))
    found = Chain(model, links, 1, "layers", lambda inputs: [inputs], (len(links),), lambda values: values[0])
    remedy = ("Its layers must run one after another in the order of model.layers; else make it a functional model: "
              "keras.Model(inputs, outputs), or take hybrid=null")
    held = {id(variable) for link in links for variable in link.variables}
    loose = [variable.path for variable in model.variables if id(variable) not in held
             and "seed_generator_state" not in variable.path]
    if loose or not links:
        raise Uncuttable(f"the model {model.name!r} ({type(model).__name__}) cannot be cut into stages: "
                         + (f"the variable {loose[0]!r} belongs to none of its layers. " if loose else
                            "it has no layers. ") + remedy)
    batch = pipeline.through(task, batch, "train", tf.zeros(2, tf.int32))
    for training in (False, True):
        with Pure(training) as pure:
            wanted, losses = forward(task, model, batch, training), len(pure.losses)
        with Pure(training) as pure:
            values = found.begin(task, batch)
            for link in links:
                try:
                    values.update(zip(link.gives, link(values, training)))
                except (MemoryError, tf.errors.ResourceExhaustedError):  # says nothing about the model
                    raise
                except Exception as error:  # a layer may raise anything about inputs that were never meant for it
                    raise Uncuttable(
                        f"the model {model.name!r} ({type(model).__name__}) cannot be cut into stages: its layer "
                        f"{link.name!r} does not take what the one before it gives ({error}). {remedy}") from error
        mine, same = found.outputs(values), len(pure.losses) == losses
        if not same or not _equal(wanted, mine):
            raise Uncuttable(f"the model {model.name!r} ({type(model).__name__}) cannot be cut into stages: its layers, "
                             f"one after another ({' > '.join(found.names[:6])}), do not give what it gives"
                             f"{' in training' if training else ''}. {remedy}")
    return found


def _equal(one: Any, other: Any) -> bool:
    if not (tf.is_tensor(one) and tf.is_tensor(other)):
        return False
    return one.dtype == other.dtype and one.shape == other.shape and bool(
        tf.reduce_all((one == other) | ((one != one) & (other != other))))
