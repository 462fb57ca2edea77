"""What cuts a round says clearly when the installed Horovod cannot be cut."""

from __future__ import annotations

import types

import pytest

from hvtrain.engine.cutting import Cutter
from hvtrain.errors import EnvironmentNotReady


class Function:
    """Stands in for a function of the engine's library; ctypes wants its types set."""

    restype = argtypes = None

    def __init__(self, does):
        self._does = does

    def __call__(self, *arguments):
        return self._does(*arguments)


def test_a_horovod_without_our_edits_is_named():
    with pytest.raises(EnvironmentNotReady, match="hvtrain engine build"):
        Cutter(types.SimpleNamespace())


def test_each_cutter_cuts_its_own_round():
    numbers, cut = iter((1, 2)), []
    library = types.SimpleNamespace(horovod_round_begin=Function(lambda: next(numbers)),
                                    horovod_round_cut=Function(lambda number: cut.append(number) or 3))
    first, second = Cutter(library), Cutter(library)
    assert first() == 3 and second() == 3 and cut == [1, 2]
