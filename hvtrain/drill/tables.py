"""A drill's report as text."""

from __future__ import annotations

from statistics import median
from typing import Iterable

from hvtrain.drill.verdict import DrillReport, Row
from hvtrain.report import table


def text(report: DrillReport) -> str:
    """What a person reads: a line per strike, then the sums, then the verdict."""
    head = [("#", "FAULT", "RANK", "STEP", "SEEN AS", "OUTCOME", "NEXT STEP", "FULL STRENGTH")]
    out = [*table.lines([*head, *map(_cells, report.rows)]), ""]
    ledger = report.ledger
    good = sum(row.good for row in report.rows)
    rolled = sum(int(event.get("steps", 0)) for event in report.rollbacks)
    back = f" (rolled back by {rolled} {_sources(report)})" if report.rollbacks else ""
    sums = [
        ("faults recovered", f"{good} of {len(report.rows)}"),
        ("steps", f"{ledger.steps} of {report.steps}"),
        ("", f"repeated: {ledger.repeated}{back}; begun again: {ledger.retried}"),
        ("samples", ledger.verdict),
        ("weights", report.weights.words + _other_sizes(report)),
        ("seconds down", _seconds("to the next step", (row.next_step for row in report.rows))),
        ("", _seconds("to full strength", (row.full for row in report.rows))),
        ("seconds in all", (
            f"{report.seconds_undisturbed:.1f} undisturbed, {report.seconds_disturbed:.1f} under the plan")),
    ]
    out += table.lines(sums)
    out += [f"  {note}" for note in ledger.notes]
    out.append("")
    out += ["All is well."] if report.ok else ["Not well:", *(f"  {problem}" for problem in report.problems)]
    return "\n".join(out)


def _cells(row: Row) -> tuple[object, ...]:
    return (row.fault, row.text, _or_dash(row.rank), _or_dash(row.step), row.cause or "-", row.outcome,
            _time(row.next_step), _time(row.full))


def _or_dash(value: object) -> object:
    return "-" if value is None else value


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


def _seconds(what: str, values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return f"{what}: -"
    return f"{what}: median {median(known):.2f}, largest {max(known):.2f}"


def _sources(report: DrillReport) -> str:
    return "to the last " + " and ".join(sorted({
        {"memory": "snapshot in memory", "checkpoint": "checkpoint"}.get(str(event.get("source")), "state")
        for event in report.rollbacks}))


def _other_sizes(report: DrillReport) -> str:
    if report.weights.identical or len(report.ledger.sizes) < 2:
        return ""
    return f" (steps were computed by {' and '.join(map(str, report.ledger.sizes))} workers, which add in other orders)"
