"""What decides about the last bits of a run's sums: it is settled once, and kept in the run directory.

::

    first start, 4 workers      2 threads each; 4 workers sum in the order of the tree ----> RUN/sums.json
    the coordinator is lost, or the run is started again, on whatever hosts  <-------------------+

A run that goes on elsewhere computes as it began. Other threads than those of :mod:`hvtrain.control.shares`, or another
order than that of :mod:`hvtrain.control.spread`, would round differently. So does another number of workers: a run
that is started again with that settles its threads anew.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Sequence

from hvtrain.control.shares import MOST_THREADS, Shares
from hvtrain.control.spread import Spread
from hvtrain.report.rundir import write_json

log = logging.getLogger(__name__)


class Sums:
    """Those of one run.

    Args:
        path: the file that they are kept in; None: they are kept nowhere.
        workers: how many the job is started with.
        threads: of each worker, where a person has chosen; else those of the file, or what agents offer.
    """

    def __init__(self, path: Path | None = None, *, workers: int = 1, threads: int | None = None):
        self._path, self._workers = path, workers
        self._kept = _read(path)
        self.shares = Shares(threads or _threads(self._kept, workers))
        self._spread = Spread({int(size): tree for size, tree in self._kept.get("tree", {}).items()})

    def threads(self) -> int:
        """Of each worker that is started. Raises OSError if they cannot be kept."""
        each = self.shares.each()
        self._keep()
        return each

    def apart(self, hosts: Sequence[str]) -> bool:
        """See :meth:`hvtrain.control.spread.Spread.apart`. Raises OSError if the order cannot be kept."""
        apart = self._spread.apart(hosts)
        self._keep()
        return apart

    def _keep(self) -> None:
        found = {"workers": self._workers, "threads": self.shares.each(),
                 "tree": {str(size): tree for size, tree in self._spread.began.items()}}
        if self._path is not None and found != self._kept:
            write_json(self._path, found)
        self._kept = found


def kept_threads(path: Path, workers: int) -> int | None:
    """How many threads each worker of a run computes with that was started with so many; None for none such."""
    return _threads(_read(path), workers)


def _threads(kept: dict[str, Any], workers: int) -> int | None:
    return kept["threads"] if kept.get("workers") == workers else None


def _read(path: Path | None) -> dict[str, Any]:
    """What the file says, of the form that :meth:`Sums._keep` gives it; nothing if there is none."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
        workers, threads, tree = found["workers"], found["threads"], found["tree"]
        if (type(workers) is int and type(threads) is int and 0 < threads <= MOST_THREADS and isinstance(tree, dict)
                and all(size.isdecimal() and type(value) is bool for size, value in tree.items())):
            return {"workers": workers, "threads": threads, "tree": tree}
        wrong = "it has other values than hvtrain writes"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        wrong = f"{type(error).__name__}: {error}"
    log.warning("%s cannot be used (%s), so threads and orders of sums are settled anew; the weights may differ in "
                "their last bits from those of a run that is left alone", path, wrong)
    return {}
