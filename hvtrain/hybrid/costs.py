"""What the layers of a model cost: measured once, kept with the run, and what partition and planner compute with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Mapping

from hvtrain.errors import UsageError


@dataclass(frozen=True)
class LayerCost:
    """One layer, measured with ``ModelCosts.batch`` samples.

    Seconds of its forward and backward pass; bytes of its parameters; bytes that backward keeps of it (``saved``);
    bytes that it hands on to the next layer (``output``).
    """

    name: str
    forward: float
    backward: float
    parameters: int
    saved: int
    output: int


@dataclass(frozen=True)
class ModelCosts:
    """A model's layers in order, as measured with micro-batches of ``batch`` samples on ``device``.

    ``state`` is the bytes of the optimizer's state, and of averaged weights, for each byte of parameters (Adam: 2);
    ``update`` the seconds that an optimizer step over all parameters takes; ``overhead`` the seconds of a micro-batch that
    belong to no layer. ``input`` is the bytes that enter the first layer.
    """

    layers: tuple[LayerCost, ...]
    batch: int
    device: str
    state: float = 0.0
    update: float = 0.0
    overhead: float = 0.0
    input: int = 0

    def at(self, samples: int) -> ModelCosts:
        """The same model with micro-batches of ``samples``, seconds and bytes in proportion, bytes rounded up.

        ``update`` and ``overhead`` stay as they are. :class:`hvtrain.hybrid.speeds.Speeds` knows better what a small
        micro-batch takes. Raises UsageError for less than one sample.
        """
        if samples < 1:
            raise UsageError(f"A micro-batch has at least 1 sample, got {samples}.")
        if samples == self.batch:
            return self
        factor = samples / self.batch

        def scaled(size: int) -> int:
            return -(-size * samples // self.batch)

        layers = tuple(replace(layer, forward=layer.forward * factor, backward=layer.backward * factor,
                               saved=scaled(layer.saved), output=scaled(layer.output)) for layer in self.layers)
        return replace(self, layers=layers, batch=samples, input=scaled(self.input))

    def to_json(self) -> str:
        """As text; :meth:`from_json` reads it."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ModelCosts:
        """Raises ValueError for what is not a measurement."""
        try:
            values: Mapping[str, Any] = json.loads(text)
            layers = tuple(LayerCost(**layer) for layer in values["layers"])
            return cls(**{**values, "layers": layers})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no measurement of a model: {error}") from None
