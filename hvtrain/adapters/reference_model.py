"""What ``Task.model`` gives with ``framework: numpy``: arrays, and a function that gives losses and gradients."""

from __future__ import annotations

from typing import Any, Mapping, Protocol

import numpy as np

from hvtrain.errors import UserCodeError

TYPES = ("float32", "float64")


class Model(Protocol):
    """A model with hand-written gradients.

    ``parameters`` maps names to arrays of float32 or float64, C-contiguous. They are trained in place: the model must
    go on using these very arrays. So with ``statistics``, which may be left out: what forward passes change, such as
    the means that BatchNorm keeps. They are averaged over the ranks with every step.

    Example::

        class Line:
            def __init__(self):
                self.parameters = {"slope": np.zeros(1, np.float32)}

            def __call__(self, inputs):
                return inputs * self.parameters["slope"]

            def losses_and_gradients(self, batch, random):
                errors = self(batch[0]) - batch[1]
                return errors**2, {"slope": np.sum(2 * errors * batch[0], keepdims=True)}
    """

    parameters: Mapping[str, np.ndarray]

    def __call__(self, inputs: Any) -> Any:
        """The outputs for evaluation: what ``Task.loss`` and ``Task.metrics`` are called with."""

    def losses_and_gradients(self, batch: Any, random: np.random.Generator
                             ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """The losses of a batch's samples, shape (B,), and the gradients of their *sum* by the parameters' names.

        The sum, so that any split of a global batch gives the same total; the adapter divides. All random numbers are
        to come from ``random``, which is seeded by step and rank: so a step that is done again is the same step.
        """


def check(model: Any) -> None:
    """Raise UserCodeError unless ``model`` is what :class:`Model` says."""
    missing = [name for name in ("parameters", "losses_and_gradients", "__call__") if not hasattr(model, name)]
    if missing:
        raise UserCodeError(f"Task.model gave a {type(model).__name__} without {', '.join(missing)}; with framework: "
                            "numpy it must be as hvtrain.adapters.reference_model.Model says")
    arrays = {**model.parameters, **getattr(model, "statistics", {})}
    if len(arrays) < len(model.parameters) + len(getattr(model, "statistics", {})):
        raise UserCodeError("a parameter and a statistic of the model have the same name; rename one")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.name not in TYPES:
            found = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
            raise UserCodeError(f"{name!r} of the model is a {found}; it must be a NumPy array of {' or '.join(TYPES)}")
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise UserCodeError(f"{name!r} of the model must be C-contiguous and writable: it is trained in place. "
                                "numpy.array(it, order='C') makes it so")


def check_result(losses: Any, gradients: Mapping[str, Any], count: int, parameters: Mapping[str, np.ndarray]) -> None:
    """Raise UserCodeError unless a model's ``losses`` and ``gradients`` fit a batch of ``count`` samples."""
    if np.shape(losses) != (count,):
        raise UserCodeError(f"losses_and_gradients gave losses of shape {np.shape(losses)} for a batch of {count} "
                            f"samples; it must give one loss per sample, shape ({count},)")
    for name, parameter in parameters.items():
        if name not in gradients:
            raise UserCodeError(f"losses_and_gradients gave no gradient for {name!r}; it gave "
                                f"{', '.join(gradients) or 'none'}. A parameter that is not to be trained belongs "
                                "under optim.groups, with freeze: true")
        if np.shape(gradients[name]) != parameter.shape:  # it would be broadcast otherwise
            raise UserCodeError(f"losses_and_gradients gave a gradient of shape {np.shape(gradients[name])} for "
                                f"{name!r}, whose shape is {parameter.shape}")
