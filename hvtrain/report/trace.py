"""What the ranks have recorded -> one file in Chrome's trace event format, which Perfetto and chrome://tracing open.

::

    rank 0 on a     steps               |---------------- step 12 ----------------|
                    compute              |-forward-||----backward----|     |-optimizer-|
                    wait                                              |----|
                    buckets in flight               |queued|on the wire|
                    buckets in flight 2               |--queued--|on the wire|
                    codec                                  |-|

Rows of one thread must nest, so buckets that are in flight at the same time get rows of their own. The format:
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Iterable, Iterator, Mapping, NamedTuple, Sequence

from hvtrain.tracing import COMPUTE, STAGE, WAIT, Mark

if TYPE_CHECKING:
    from hvtrain.engine.reductions import Span

STEPS, FLIGHTS, CODEC = "steps", "buckets in flight", "codec"
ROWS = (STEPS, COMPUTE, WAIT, FLIGHTS, CODEC)
"""From top to bottom. Where the model is in stages, each has a row of its own after "compute"."""

MOST_ROWS = 1000
"""Thread ids of one rank; they must be unique in the whole file, or viewers mix up the ranks."""


class Slice(NamedTuple):
    """A stretch of time on one row of one rank; ``begin`` and ``end`` in seconds of that rank's monotonic clock."""

    row: str
    name: str
    begin: float
    end: float
    args: dict[str, Any]


def drawn(marks: Sequence[Mark], sums: Sequence[Span]) -> list[Slice]:
    """One rank's step as slices.

    Args:
        marks: what the adapter has marked.
        sums: what the engine has measured of the reductions of that time. A bucket that it did not measure (NCCL), or
            whose reduction was broken off, is in flight until the wait for it was over.
    """
    slices, flights = [], []
    seen = {mark.number: mark.end for mark in marks if mark.row == WAIT}
    for mark in marks:
        if mark.row == COMPUTE or mark.row.startswith(STAGE):
            slices.append(Slice(mark.row, mark.name, mark.begin, mark.end,
                                {} if mark.number is None else {"micro_batch": mark.number}))
        elif mark.row == WAIT:
            slices.append(Slice(WAIT, _label(mark.name, mark.number), mark.begin, mark.end, {}))
        else:
            flights.append(_flight(mark, sums, seen))
    codecs = [[flight.pop()] for flight in flights if flight[-1].row == CODEC]
    for kind, groups in ((FLIGHTS, flights), (CODEC, codecs)):
        slices += (part._replace(row=row) for row, group in _apart(kind, groups) for part in group)
    return slices


def _label(name: str, number: int | None) -> str:
    return name if number is None else f"{name} {number}"


def _flight(mark: Mark, sums: Sequence[Span], seen: Mapping[int | None, float]) -> list[Slice]:
    """A bucket from being asked for to its sum: the whole, its parts, and last the codec's share, if there was one."""
    label = _label("bucket", mark.number)
    parts = [part for part in sums if part.name == mark.name and part.begin >= mark.begin]
    if not parts:
        return [Slice(FLIGHTS, label, mark.begin, seen.get(mark.number, mark.end), {})]
    begin, end = min(part.begin for part in parts), max(part.end for part in parts)
    codec = sum(part.codec for part in parts)
    about = {"bytes": sum(part.bytes for part in parts), "codec_ms": round(codec * 1e3, 3)}
    flight = [Slice(FLIGHTS, label, mark.begin, end, about), Slice(FLIGHTS, "queued", mark.begin, begin, {}),
              Slice(FLIGHTS, "on the wire", begin, end, {})]
    if codec > 0:  # only the sum of many short pieces is known: it is drawn from the beginning on
        flight.append(Slice(CODEC, label, begin, min(end, begin + codec), {"codec_ms": about["codec_ms"]}))
    return flight


def _apart(row: str, groups: Sequence[list[Slice]]) -> Iterator[tuple[str, list[Slice]]]:
    """Each group (a slice and its parts) with a row where no other is at that time: ``row``, "``row`` 2" and so on."""
    free: list[float] = []
    for group in sorted(groups, key=lambda group: group[0].begin):
        whole = group[0]
        lane = next((lane for lane, since in enumerate(free) if since <= whole.begin), len(free))
        free[lane:lane + 1] = [whole.end]
        yield (row if lane == 0 else f"{row} {lane + 1}"), group


def packed(slices: Iterable[Slice], offset: float) -> list[list[Any]]:
    """Slices as JSON values, in whole microseconds of the wall clock: ``offset`` seconds from the monotonic one."""
    return [[row, name, int((begin + offset) * 1e6), int((end + offset) * 1e6), args]
            for row, name, begin, end, args in slices]


def merged(ranks: Sequence[Mapping[str, Any]], steps: str) -> dict[str, Any]:
    """The file's content.

    Args:
        ranks: of each rank its ``host``, and its ``slices`` as :func:`packed` gives them.
        steps: which steps these are, for people.
    """
    origin = min((one[2] for rank in ranks for one in rank["slices"]), default=0)
    events: list[dict[str, Any]] = []
    for number, rank in enumerate(ranks):
        pid = number + 1  # viewers take process 0 for the idle one
        threads = {row: pid * MOST_ROWS + place
                   for place, row in enumerate(_rows({one[0] for one in rank["slices"]}), start=1)}
        events += _names(pid, f"rank {number} on {rank['host']}", threads)
        # A slice comes before its parts, as viewers want it.
        for row, name, begin, end, args in sorted(rank["slices"], key=lambda one: (threads[one[0]], one[2], -one[3])):
            events.append({"ph": "X", "pid": pid, "tid": threads[row], "name": name, "cat": row, "ts": begin - origin,
                           "dur": end - begin, "args": args})
    begun = datetime.fromtimestamp(origin / 1e6, timezone.utc).isoformat()
    return {"displayTimeUnit": "ms", "otherData": {"steps": steps, "begun": begun}, "traceEvents": events}


def _rows(found: set[str]) -> list[str]:
    def place(row: str) -> tuple[int, int, str]:
        kinds = (STEPS, COMPUTE, STAGE, *ROWS[2:])
        return next(index for index, kind in enumerate(kinds) if row.startswith(kind)), len(row), row

    return sorted({*found, *ROWS}, key=place)


def _names(pid: int, name: str, threads: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    def about(what: str, tid: int, **args: Any) -> dict[str, Any]:
        return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": args}

    yield about("process_name", 0, name=name)
    yield about("process_sort_index", 0, sort_index=pid)
    for row, tid in threads.items():
        yield about("thread_name", tid, name=row)
        yield about("thread_sort_index", tid, sort_index=tid)
