"""How workers are spread over hosts, and whether that decides about the last bits of their sums.

::

    2 + 2        (0 + 1) + (2 + 3)      hosts add their own workers up first: subtrees of the engine's binary tree
    1 + 1 + 1 + 1                       the same tree over the network
    2 + 1 + 1    ring                   left to itself the engine takes gloo's ring here, whose order is another one

Workers whose first round of that many summed in the order of the tree keep that order: where a lost worker's place is taken on another host,
so that the hosts do not fit the tree any more, workers exchange numbers as if each had a host of its own
(engine/native/hvtrain_tree.h, hvtrain_neighbours.h). Those that began otherwise have no such order to keep.
"""

from __future__ import annotations

from itertools import groupby
from typing import Mapping, Sequence


class Spread:
    """Of one job's rounds. ``began``: by the number of workers, whether the first round of so many was a tree."""

    def __init__(self, began: Mapping[int, bool] | None = None) -> None:
        self.began: dict[int, bool] = dict(began or {})

    def apart(self, hosts: Sequence[str]) -> bool:
        """Whether the next round's workers must not add up within hosts first; ``hosts`` of its ranks, in order."""
        tree = is_tree(hosts)
        return self.began.setdefault(len(hosts), tree) and not tree


def is_tree(hosts: Sequence[str]) -> bool:
    """Whether sums within hosts are subtrees of the tree over all ranks: one host, or each has as many neighbouring ranks,
    1, 2, 4, 8, ..."""
    runs = [len([*ranks]) for _, ranks in groupby(hosts)]
    if len(runs) == 1:
        return True
    return len(runs) == len(set(hosts)) and len(set(runs)) == 1 and runs[0] & (runs[0] - 1) == 0
