"""From what ranks wrote of their all-reduces to figures. Pure."""

from __future__ import annotations

import statistics
from typing import Any, Iterable, Mapping, Sequence

PEERS = ("horovod none", "horovod fp16", "gloo none")
"""Whom every codec of hvtrain is compared with."""

FEWEST, MOST = 5, 100
"""Operations of one way and size in a run."""


def operations(mb: float, volume: float) -> int:
    """How often a buffer of ``mb`` MB is reduced so that it comes to ``volume`` MB, within bounds."""
    return max(FEWEST, min(MOST, round(volume / mb)))


def seconds(ranks: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """How long each operation took, from the (begin, end) of each operation of each rank.

    ::

        rank 0   begin --------------- end              from the moment that the last rank joined in
        rank 1        begin ------------- end           until the last rank had its result
                      |<-----  this  -->|
    """
    return [max(end for _, end in each) - max(begin for begin, _ in each) for each in zip(*ranks)]


def summary(library: str, size: int, findings: Iterable[Mapping[str, Any]]) -> dict[tuple[float, str], dict[str, Any]]:
    """What one run of ``library`` with ``size`` ranks has found, by MB and contestant ("hvtrain fp16").

    Raises:
        ValueError: a rank has reported nothing of something that another one has.
    """
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for finding in findings:
        if finding["event"] == "reduced":
            groups.setdefault((finding["mb"], f"{library} {finding['way']}"), []).append(finding)
    found = {}
    for (mb, who), group in groups.items():
        if sorted(each["rank"] for each in group) != list(range(size)):
            raise ValueError(f"{who}, {mb:g} MB: {len(group)} of {size} ranks have reported")
        found[mb, who] = {"seconds": statistics.median(seconds([each["stamps"] for each in group])),
                          "error": next(each["error"] for each in group if each["rank"] == 0),
                          "identical": len({each["digest"] for each in group}) == 1}
    return found


def collected(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several runs of one contestant with one size: spread of the seconds, the worst of what was checked."""
    times = [run["seconds"] for run in runs]
    return {"median": statistics.median(times), "min": min(times), "max": max(times), "runs": times,
            "error": max(run["error"] for run in runs), "identical": all(run["identical"] for run in runs)}


def table(mb: float, ranks: int, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows by contestant. The ratios are a peer's time by hvtrain's: above 1, hvtrain is the faster one."""
    lines = [f"{mb:g} MB, {ranks} ranks",
             f"{'':18}{'ms':>9}{'min':>9}{'max':>9}{'largest error':>15}{'equal bits':>12}"
             + "".join(f"{'x ' + peer:>16}" for peer in PEERS)]
    for who, each in found.items():
        line = (f"{who:18}{1e3 * each['median']:9.2f}{1e3 * each['min']:9.2f}{1e3 * each['max']:9.2f}"
                f"{each['error']:15.1e}{'yes' if each['identical'] else 'NO':>12}")
        if who.startswith("hvtrain"):
            line += "".join(f"{found[peer]['median'] / each['median']:15.2f}x" if peer in found else f"{'-':>16}"
                            for peer in PEERS)
        lines.append(line)
    return "\n".join(lines) + "\n"
