"""From the evidence of two runs to a verdict. Pure: it sees records, no files and no processes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from hvtrain.chaos.phases import COMPUTING, STATELESS
from hvtrain.chaos.plan import Plan
from hvtrain.chaos.registry import Claim
from hvtrain.drill.evidence import Evidence
from hvtrain.drill.weights import Comparison
from hvtrain.report.ledger import Records
from hvtrain.report.ledgercheck import ByLedger, LedgerReport, audit, sampler_of

GOOD = ("recovered", "endured")

CLOCK = 0.01
"""Events carry rounded times, seconds."""


@dataclass(frozen=True)
class Row:
    """What became of one strike. Times are in seconds from the strike.

    ``outcome`` is recovered (a later round went on), endured (nothing broke, as it should), no effect, not recovered,
    or not struck; ``next_step`` is when the next step was committed by anybody, ``full`` when by as many workers as
    before.
    """

    fault: int
    text: str
    outcome: str
    rank: int | None = None
    pid: int | None = None
    step: int | None = None
    phase: str = ""
    round: int | None = None
    next_round: int | None = None
    next_step: float | None = None
    full: float | None = None
    cause: str = ""

    @property
    def good(self) -> bool:
        return self.outcome in GOOD


@dataclass(frozen=True)
class DrillReport:
    """The result of a drill; ``problems`` says all that is not well, one sentence each."""

    job: str
    workers: int
    steps: int
    seconds_undisturbed: float
    seconds_disturbed: float
    rows: tuple[Row, ...]
    ledger: LedgerReport
    rollbacks: tuple[dict[str, Any], ...]
    weights: Comparison
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object, with the conclusions ok, faults, recovered, once and identical."""
        return {"ok": self.ok, "faults": len(self.rows), "recovered": sum(row.good for row in self.rows),
                "once": self.ledger.ok, "identical": self.weights.identical, **asdict(self)}


def judge(job: str, workers: int, steps: int, plan: Plan, calm: Evidence, disturbed: Evidence,
          weights: Comparison) -> DrillReport:
    """The report of a drill of ``plan``; ``calm`` is the undisturbed run."""
    rows = tuple(_rows(plan, disturbed, steps))
    sampler = sampler_of(calm.records)
    calm_ledger = audit(calm.records, sampler, steps=steps)
    ledger = audit(disturbed.records, sampler or ByLedger(calm.records), steps=steps)
    rollbacks = tuple(event for event in disturbed.events if event.get("event") == "rollback")
    problems = []
    if disturbed.code != 0:
        reason = disturbed.reason or "no reason is known"
        problems.append(f"the run under the plan ended with exit code {disturbed.code}: {reason}")
    problems += [f"fault {row.fault} ({row.text}): {row.outcome}" for row in rows if not row.good]
    if calm_ledger.checked and not calm_ledger.ok:
        problems.append(f"the undisturbed run itself: {calm_ledger.verdict}")
    if not ledger.ok:
        problems.append(ledger.verdict)
    if weights.problem or (not weights.identical and calm_ledger.sizes == ledger.sizes):
        problems.append(f"weights: {weights.words}")
    return DrillReport(job, workers, steps, calm.seconds, disturbed.seconds, rows, ledger, rollbacks, weights,
                       tuple(problems))


def _rows(plan: Plan, evidence: Evidence, steps: int) -> list[Row]:
    course = _Course(evidence, steps)
    rows = []
    for index, fault in enumerate(plan.faults):
        claims = [claim for claim in evidence.claims if claim.fault == index]
        rows += [course.row(claim, str(fault)) for claim in claims]
        lacking = max(0, (fault.planned or 0) - len(claims))
        rows += [Row(index, str(fault), "not struck") for _ in range(lacking)]
    return rows


class _Course:
    """The disturbed run's course: who committed when, in rounds of which size."""

    def __init__(self, evidence: Evidence, steps: int):
        self._evidence, self._steps = evidence, steps
        self._sizes = sizes(evidence.records)
        self._commits = sorted((line.time, line.attempt[1]) for line in evidence.records.committed)

    def row(self, claim: Claim, text: str) -> Row:
        """What became of ``claim``."""
        if not claim.struck:
            return Row(claim.fault, text, "not struck")
        place = {"rank": claim.rank, "pid": claim.pid, "step": claim.step, "phase": claim.phase, "round": claim.round}
        if claim.kind == "slow":
            went_on = any(line.step >= claim.step for line in self._evidence.records.committed)
            return Row(claim.fault, text, "endured" if went_on else "not recovered", **place)
        # A worker that has not got its seat is struck in the round that it would have joined, which may still form.
        first_round = claim.round + (claim.phase not in STATELESS)
        after = [(when, number) for when, number in self._commits if number >= first_round and when > claim.time]
        cause = self._cause(claim, until=after[0][0] if after else math.inf)
        if not after:
            return Row(claim.fault, text, self._without_a_round_after(claim), **place, cause=cause)
        before = max((size for number, size in self._sizes.items() if number <= claim.round), default=0)
        full = next((when for when, number in after if self._sizes.get(number, 0) >= before), None)
        when, number = after[0]
        return Row(claim.fault, text, "recovered", **place, cause=cause, next_round=number,
                   next_step=round(when - claim.time, 3),
                   full=None if full is None else round(full - claim.time, 3))

    def _without_a_round_after(self, claim: Claim) -> str:
        if self._evidence.code != 0:
            return "not recovered"
        done = claim.step >= self._steps and claim.phase not in COMPUTING
        return "endured" if done else "no effect"  # after the last step there is nothing left to go on with

    def _cause(self, claim: Claim, until: float) -> str:
        """How the job saw the loss; empty where no worker was lost."""
        for event in self._evidence.events:
            if (event.get("event") == "worker_lost" and event.get("rank") == claim.rank
                    and claim.time - CLOCK <= event.get("time", 0.0) <= until + CLOCK):
                return str(event.get("cause", ""))
        return ""


def sizes(records: Records) -> dict[int, int]:
    """The number of workers of each round in which samples were used."""
    return {line.attempt[1]: line.size for line in records.used}
