"""Splits of a model's layers into stages: whether one fits the model, and what to write instead.

::

    layers    1: embed   2: block0   3: block1   4: block2   5: head
    [2, 3]   |----- stage 0 ------| |---------- stage 1 -----------|
"""

from __future__ import annotations

import shlex
from typing import Sequence

from hvtrain.errors import UsageError

SHOWN = 40
"""So many names are listed; of more layers the first ones, and the last."""


def check(split: Sequence[int], names: Sequence[str], more: str = "") -> None:
    """Raise UsageError unless ``split`` gives every stage a layer or more, and uses all of those called ``names``.

    ``more`` is said after the names.
    """
    if split and min(split) >= 1 and sum(split) == len(names):
        return
    check_stages(len(split), names, more)
    raise UsageError(
        f"hybrid.split is {list(split)}, {sum(split)} layers in {counted(len(split), 'stage')}, but the model has "
        f"{counted(len(names), 'layer')} ({listed(names)}).{more}\nEvery stage needs one at least, and all of them "
        f"must be in one: for instance {_typed(even(len(names), max(1, len(split))))}. Where split is left out "
        "(hybrid.split=null), `hvtrain run` finds the best one by a measurement.")


def check_stages(stages: int, names: Sequence[str], more: str = "") -> None:
    """Raise UsageError for more stages than layers, which are called ``names``."""
    if stages <= len(names):
        return
    raise UsageError(
        f"{stages} stages need at least {stages} layers, but the model can be cut into {len(names)} only "
        f"({listed(names)}).{more}\nSet hybrid.stages to at most {len(names)}: hybrid.stages={len(names)} "
        f"{_typed(even(len(names), len(names)))}")


def even(layers: int, stages: int) -> list[int]:
    """As many layers in each stage; where that does not come out even, one more in the first ones."""
    return [layers // stages + (stage < layers % stages) for stage in range(stages)]


def listed(names: Sequence[str]) -> str:
    """The layers with their numbers, which count from 1."""
    each = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    return ", ".join(each if len(each) <= SHOWN else [*each[:SHOWN - 4], "...", *each[-3:]])


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _typed(split: Sequence[int]) -> str:
    """As it is typed in a shell."""
    return shlex.quote(f"hybrid.split=[{','.join(map(str, split))}]")
