"""Workers are killed at every point of their course, one and several at once: nothing is lost, not a bit is different."""

from __future__ import annotations

import pytest

from hvtrain.probe import PHASES
from tests.support.whole_job import STEPS, WHOLE


def kill(phase: str, rank: int | list[int], step: int | None = None, **more: int) -> dict:
    return {"kind": "kill", "phase": phase, "rank": rank, **({} if step is None else {"step": step}), **more}


IN_STEPS = ("forward", "backward", "bucket", "reduced", "optimizer", "committed")


def in_every_phase(rank: int, other: int) -> list[dict]:
    """Kills of ``rank`` in each phase. While a round is being formed it is once a survivor (``other`` was killed before)
    and once the replacement."""
    return [
        *(kill(phase, rank, step=10 + 8 * number) for number, phase in enumerate(IN_STEPS)),
        kill("evaluation", rank, step=58),
        kill("start", rank, round=3),
        kill("joining", rank, round=4),
        kill("backward", other, step=66),
        kill("forming", rank, round=9),
        kill("backward", other, step=74),
        kill("state", rank, round=11, count=2),
    ]


@pytest.mark.parametrize("rank,other", [(0, 2), (2, 1)])
def test_killed_in_every_phase(run, calm, rank, other):
    faults = in_every_phase(rank, other)
    if rank == 0:
        faults.append(kill("checkpoint", 0, step=88))
    assert {fault["phase"] for fault in faults} == set(PHASES) - ({"checkpoint"} if rank else set())
    run.run(*WHOLE, workers=4, faults=faults)
    strikes = run.struck()
    assert {strike.rank for strike in strikes} == {rank, other}
    assert len(run.events("worker_lost")) == len(strikes)
    assert not run.events("rollback")
    report = run.exact(STEPS)
    assert (report.sizes, report.repeated) == ((4,), 0)
    assert run.ending() == calm(4) and run.gone()


def test_two_three_and_all_at_once(run, calm):
    """As long as one is left nothing is lost. Then the host's memory still has the last snapshot."""
    run.run(*WHOLE, "elastic.snapshot_every=7 steps", workers=4, faults=[
        kill("bucket", [1, 2], step=20), kill("backward", [0, 3], step=35), kill("reduced", [0, 1, 2], step=50),
        kill("optimizer", [1, 2, 3], step=65), kill("forward", [0, 1, 2, 3], step=88)])
    assert len(run.struck()) == len(run.events("worker_lost")) == 14
    rollback, = run.events("rollback")
    # Steps 85, 86, 87 come after the snapshot of step 84, and are taken again.
    assert (rollback["source"], rollback["step"], rollback["steps"]) == ("memory", 84, 3)
    report = run.exact(STEPS)
    assert (report.sizes, report.repeated) == ((4,), 3)
    assert run.ending() == calm(4) and run.gone()
