"""Functions that are traced once, ahead, and then called at the least expense."""

from __future__ import annotations

import threading
from typing import Any, Callable, Sequence

import numpy as np
import tensorflow as tf


class Traced:
    """``function``, traced for arguments of ``signature``; called with their tensors in ``tf.nest.flatten``'s order.

    TensorFlow's own call looks at every argument anew, in Python: half a millisecond to two, for what has been looked
    at already (2.21). What is called here instead is what that comes down to, a method without a public name.
    """

    def __init__(self, function: Callable[..., Any], signature: Sequence[Any]):
        self._function = tf.function(function, input_signature=signature, autograph=False)
        self._concrete = self._function.get_concrete_function()
        self._captured = list(self._concrete.captured_inputs)
        wanted = [(part.dtype, part.shape.rank) for part in tf.nest.flatten(signature)]
        there = [(part.dtype, part.shape.rank) for part in self._concrete.inputs[:len(wanted)]]
        assert wanted == there, f"TensorFlow has ordered the arguments in another way: {there}"

    @property
    def graph(self) -> Any:
        return self._concrete.graph

    def __call__(self, *tensors: tf.Tensor) -> Any:
        return self._concrete._call_flat(list(tensors), self._captured)


class TracedBeside:
    """``make``'s function, traced in a thread of its own while this one has to wait for others; the first call waits.

    What tracing raises is raised by the first call. A process that ends before that waits for the thread, too: at
    the end of the interpreter Python ends a daemon thread within TensorFlow's C++, by an exception that may not leave
    it, so that the process aborts (std::terminate, signal 6).
    """

    def __init__(self, make: Callable[[], Traced]):
        self._make, self._traced, self._error = make, None, None
        self._thread: threading.Thread | None = threading.Thread(target=self._trace, name="tracing", daemon=False)
        self._thread.start()

    def _trace(self) -> None:
        try:
            self._traced = self._make()
        except BaseException as error:  # noqa: BLE001 - raised again where it can be handled
            self._error = error

    def __call__(self, *tensors: tf.Tensor) -> Any:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
        assert self._traced is not None
        return self._traced(*tensors)


def shared(array: np.ndarray) -> tf.Tensor | None:
    """A tensor of the same memory as ``array``, of whatever it will hold; None if TensorFlow could not compute with it.

    Its operations count on memory that begins at a multiple of 64 bytes.
    """
    if not array.size or not array.flags.c_contiguous or not array.flags.writeable or array.ctypes.data % 64:
        return None
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
