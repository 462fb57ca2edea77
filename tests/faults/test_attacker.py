"""An attacker plays his list against a running job, on the members' own host: the job ends as without him."""

from __future__ import annotations

import pytest

from tests.support.attack import door, files, limits
from tests.support.attack.play import WORKERS, play, proves
from tests.support.whole_job import STEPS, WHOLE


@pytest.mark.parametrize("tls", [True, pytest.param(False, marks=pytest.mark.soak)], ids=["tls", "plain"])
def test_the_attackers_list(run, calm, tls, record_property):
    report = play(run, *WHOLE, tls=tls)
    done = run.wait()
    table = report.table()
    print(table)
    record_property("attack", table)
    assert not report.failed, table
    assert done.returncode == 0, run.logs()

    # He has reached his victims.
    played = {what for _, what, _ in report.lines}
    skipped = set() if tls else {what for what, attack in door.LINES.items() if attack in (door.middle, door.no_tls)}
    assert played >= ({*door.LINES, *limits.LINES, *files.LINES} - skipped) | {"the rendezvous, from another address"}, table
    if proves():
        for line in ("rendezvous, from a member's address", "gloo's ports", "giver of the state"):
            assert any(line in what for what in played), table

    # Nobody else listens, and none on another address than the job's.
    assert {what for *_, what in report.listeners} == {what for *_, what in report.listeners if what != "unknown"}, table
    assert {address for _, _, address, _ in report.listeners} == {"127.0.0.1"}, table
    assert {process for process, *_ in report.listeners} == {"coordinator", "worker"}, table

    # The job has not noticed.
    assert run.ending() == calm(WORKERS) and run.gone()
    assert len(run.struck()) == len(run.plan.faults) and len(run.events("worker_lost")) == 1
    assert [event["round"] for event in run.events("round")] == [1, 2], "no round had to be formed again"
    assert run.exact(STEPS).repeated == 0 and not run.events("rollback")
    said = (run.base / "run.err").read_text()
    assert "Traceback" not in said and len(said) < 64_000 and "refused a connection" in said, said[-3000:]
    assert not (run.base / "exploded").exists()
