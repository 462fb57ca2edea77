"""A tensor without a framework: a dtype name, a shape, and the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from hvtrain.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

# dtype names of the safetensors format -> bytes per element
ITEM_SIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}

_NUMPY_NAME = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "F16": "float16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64",
    "C64": "complex64",
}
# These three are numpy dtypes only where ml_dtypes is installed (it comes with TensorFlow).
_EXTENSION_NAME = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_FROM_NUMPY = {name: dtype for dtype, name in [*_NUMPY_NAME.items(), *_EXTENSION_NAME.items()]}


@dataclass(frozen=True)
class Blob:
    """One tensor: little-endian elements in C order.

    ``dtype`` is a safetensors name such as ``"F32"`` or ``"BF16"``; ``data`` may be any C-contiguous buffer.
    It is not copied: whoever makes a Blob keeps the memory unchanged for as long as the Blob is used.
    Afterwards ``data`` is a flat ``memoryview`` of bytes, writable if the buffer is.

    Raises UsageError for an unknown dtype, a buffer that is not C-contiguous, or one of the wrong length.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_SIZE:
            raise UsageError(f"A tensor's dtype must be one of {', '.join(ITEM_SIZE)}; got {self.dtype!r}.")
        object.__setattr__(self, "shape", tuple(int(extent) for extent in self.shape))
        object.__setattr__(self, "data", flat_bytes(self.data))
        if any(extent < 0 for extent in self.shape):
            raise UsageError(f"A tensor's extents must not be negative; got shape {list(self.shape)}.")
        if self.data.nbytes != self.nbytes:
            raise UsageError(f"A {self.dtype} tensor of shape {list(self.shape)} has {self.nbytes} bytes; "
                             f"its buffer has {self.data.nbytes}.")

    @property
    def nbytes(self) -> int:
        """Length of ``data`` in bytes."""
        return prod(self.shape) * ITEM_SIZE[self.dtype]

    @classmethod
    def from_numpy(cls, array: np.ndarray) -> Blob:
        """The array as a Blob; shares its memory if it is C-contiguous and little-endian, else copies.

        Raises UsageError for dtypes that the safetensors format lacks (objects, strings, complex128).
        """
        import numpy as np

        dtype = _FROM_NUMPY.get(array.dtype.name)
        if dtype is None:
            raise UsageError(f"numpy dtype {array.dtype} cannot be stored; "
                             f"convert it to one of {', '.join(_FROM_NUMPY)}.")
        shape = array.shape
        if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and not np.little_endian):
            array = array.astype(array.dtype.newbyteorder("<"))
        # bytes view: numpy refuses to export bfloat16 itself through the buffer protocol
        return cls(dtype, shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def to_numpy(self) -> np.ndarray:
        """The tensor as an array that shares this Blob's memory (read-only if that is).

        Raises UsageError for BF16 and F8 where the package ml_dtypes is missing.
        """
        import numpy as np

        if self.dtype in _NUMPY_NAME:
            dtype = np.dtype(_NUMPY_NAME[self.dtype]).newbyteorder("<")
        else:
            try:
                import ml_dtypes
            except ImportError:
                raise UsageError(f"numpy has no {self.dtype} of its own. Install it with: "
                                 "pip install ml_dtypes") from None
            dtype = np.dtype(getattr(ml_dtypes, _EXTENSION_NAME[self.dtype]))
        return np.frombuffer(self.data, np.uint8).view(dtype).reshape(self.shape)


def flat_bytes(buffer: Any) -> memoryview:
    """``buffer`` as a one-dimensional memoryview of bytes, without copying.

    Raises UsageError when it is no buffer, or not C-contiguous.
    """
    try:
        view = memoryview(buffer)
    except (TypeError, ValueError, BufferError) as error:
        raise UsageError(f"A tensor's data must be a buffer (bytes, memoryview, ...): {error}") from None
    if not view.c_contiguous:
        raise UsageError("A tensor's data must be C-contiguous; make it so with .contiguous() or "
                         "numpy.ascontiguousarray().")
    if view.nbytes == 0:  # memoryview.cast refuses empty views
        return memoryview(b"")
    if view.format == "B" and view.ndim == 1:
        return view
    try:
        return view.cast("B")
    except (TypeError, ValueError):  # a format that memoryview does not know, e.g. "<f" from ctypes
        import numpy as np

        return np.frombuffer(view, np.uint8).data
