"""Which tensors there are and where each lies in one block of memory; as JSON for those who get the block.

::

    [["model", [["w", "F32", [4, 3]], ...]], ["optimizer", [...]]]        what travels
    | w, 48 bytes | 16 unused | next tensor ... |                         what it says about the block

Places follow from the order, the dtypes and the shapes, so no offset is ever taken from anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Mapping

from hvtrain.checkpoint.blob import ITEM_SIZE, Blob
from hvtrain.errors import ProtocolError

ALIGNMENT = 64
"""Every tensor begins at a multiple of this many bytes: a cache line, and aligned for any dtype."""

_MOST_DIMENSIONS, _LARGEST = 64, 2**62  # so that a hostile shape cannot make prod() expensive


@dataclass(frozen=True)
class Place:
    """One tensor and its bytes ``[begin, begin + nbytes)`` in the block."""

    group: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True)
class Outline:
    """The tensors of some groups, in order; ``nbytes`` is the size of the block that holds them."""

    groups: tuple[str, ...]
    places: tuple[Place, ...]
    nbytes: int

    @classmethod
    def of(cls, groups: Mapping[str, Mapping[str, Blob]]) -> Outline:
        """The outline of tensors that are at hand; its places are in the order of ``groups`` and their items."""
        return cls._laid_out([(group, [(name, blob.dtype, blob.shape) for name, blob in blobs.items()])
                              for group, blobs in groups.items()])

    @classmethod
    def from_json(cls, value: Any) -> Outline:
        """The outline that :meth:`to_json` gave. Trusts nothing.

        Raises:
            ProtocolError: it is no outline, names something twice, or has a dtype that this version does not know.
        """
        return cls._laid_out([(_text(group), [_tensor(item) for item in _list(tensors)])
                              for group, tensors in map(_pair, _list(value))])

    def to_json(self) -> list[Any]:
        """This outline as lists, strings and numbers."""
        tensors: dict[str, list[Any]] = {group: [] for group in self.groups}
        for place in self.places:
            tensors[place.group].append([place.name, place.dtype, list(place.shape)])
        return [[group, items] for group, items in tensors.items()]

    def blobs(self, block: memoryview) -> dict[str, dict[str, Blob]]:
        """The tensors in ``block`` (at least ``nbytes`` bytes), whose memory they share."""
        result: dict[str, dict[str, Blob]] = {group: {} for group in self.groups}
        for place in self.places:
            result[place.group][place.name] = Blob(place.dtype, place.shape,
                                                   block[place.begin:place.begin + place.nbytes])
        return result

    @classmethod
    def _laid_out(cls, groups: list[tuple[str, list[tuple[str, str, tuple[int, ...]]]]]) -> Outline:
        places: list[Place] = []
        end = 0
        for group, tensors in groups:
            if len({name for name, _, _ in tensors}) != len(tensors):
                raise ProtocolError(f"the outline of a state names a tensor of {group!r} twice")
            for name, dtype, shape in tensors:
                size = prod(shape) * ITEM_SIZE[dtype]
                places.append(Place(group, name, dtype, shape, end, size))
                end += -(-size // ALIGNMENT) * ALIGNMENT
        names = tuple(group for group, _ in groups)
        if len(set(names)) != len(names):
            raise ProtocolError("the outline of a state names a group twice")
        return cls(names, tuple(places), end)


def _tensor(item: Any) -> tuple[str, str, tuple[int, ...]]:
    if not isinstance(item, list) or len(item) != 3:
        raise ProtocolError(f"a tensor in the outline of a state must be [name, dtype, shape]; got {_short(item)}")
    name, dtype, shape = item
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise ProtocolError(f"the outline of a state has a dtype that this version does not know: {_short(dtype)}")
    if len(_list(shape)) > _MOST_DIMENSIONS or not all(type(n) is int and 0 <= n <= _LARGEST for n in shape):
        raise ProtocolError(f"the outline of a state has a tensor of shape {_short(shape)}")
    return _text(name), dtype, tuple(shape)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ProtocolError(f"the outline of a state must have a list where it has {_short(value)}")
    return value


def _pair(value: Any) -> list[Any]:
    if len(_list(value)) != 2:
        raise ProtocolError(f"a group in the outline of a state must be [name, tensors]; got {_short(value)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"a name in the outline of a state must be a string; got {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
