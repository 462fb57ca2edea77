"""Calling layers without changing anything: what they would write is kept beside, and random numbers come from a seed.

So a pass can be done twice (recomputation), in another order, or for a measurement, and passes of different stages have
nothing in common but the values that go between them.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.layers.layer import CallContext  # what tells inner layers of ``training`` (Keras 3.15)

_SEED = "seed_generator_state"
_CONTEXT = "current_call_ctx"


class Pure(keras.StatelessScope):
    """Within it layers change no variable.

    Args:
        training: what layers are told, however deep they lie.
        state: the values of variables by identity, where they are not those that the variables have.
        seed: gives the state of the random generator ``number``, in the order of their first use; uint32, shape (2,).

    ``written`` has the new values of the variables that were written, by identity; ``read`` all that were looked at,
    but trainable ones and random generators; ``losses`` what layers have added.
    """

    def __init__(self, training: bool, state: Mapping[int, Any] | None = None,
                 seed: Callable[[int], Any] = lambda number: tf.constant([number, 0], tf.uint32)):
        super().__init__(collect_losses=True, initialize_variables=False)
        self._training, self._seed = training, seed
        self.state_mapping = dict(state or {})
        self.written: dict[int, Any] = {}
        self.read: dict[int, Any] = {}
        self._generators: dict[int, Any] = {}

    def __enter__(self) -> Pure:
        self._outer = global_state.get_global_attribute(_CONTEXT)
        context = CallContext(entry_layer=None)
        context.set_value("training", self._training)
        global_state.set_global_attribute(_CONTEXT, context)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        global_state.set_global_attribute(_CONTEXT, self._outer)

    def add_update(self, update: tuple[Any, Any]) -> None:
        variable, value = update
        if is_generator(variable):
            self._generators[id(variable)] = value
        else:
            self.read[id(variable)] = variable
            self.written[id(variable)] = self.state_mapping[id(variable)] = value

    def get_current_value(self, variable: Any) -> Any:
        if is_generator(variable):
            if id(variable) not in self._generators:
                self._generators[id(variable)] = tf.cast(self._seed(len(self._generators)), variable._dtype)
            return self._generators[id(variable)]
        if not variable.trainable:
            self.read[id(variable)] = variable
        return self.state_mapping.get(id(variable))


def is_generator(variable: Any) -> bool:
    """Whether it is the state of a random generator."""
    return variable.path.rpartition("/")[2] == _SEED
