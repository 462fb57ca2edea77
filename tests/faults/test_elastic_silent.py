"""Faults that end no process: a stopped worker, a worker stuck in user code, a coordinator that stands still."""

from __future__ import annotations

import signal
import time

from hvtrain.report import ledger
from tests.support.whole_job import STEPS, WHOLE


def test_stopped_and_stuck_workers_and_cut_connections(run, calm):
    """The guilty rank is killed, not its peers, who wait for it; what hung can be read in its log. A broken connection
    is nobody's fault, and costs a round only."""
    ledger = run.base / "ledger"
    run.run(*WHOLE, "elastic.heartbeat_timeout=2s", "elastic.step_timeout=2s", f"task.args.ledger={ledger}",
            "task.args.fault={kind: hang, rank: 2, step: 45}", workers=4, faults=[
                {"kind": "stop", "step": 20, "rank": 1}, {"kind": "cut", "step": 60, "rank": 3},
                {"kind": "fail", "step": 75, "rank": 0}])
    run.struck()
    assert len((ledger / "fault.done").read_text().splitlines()) == 1
    lost = [(event["rank"], event["cause"]) for event in run.events("worker_lost")]
    assert lost == [(1, "silent"), (2, "stuck")]
    assert [event["rank"] for event in run.events("stall")] == [1, 2]
    *steps, last = [event["step"] for event in run.events("round")]
    assert steps == [0, 19, 45, 59] and last in (74, 75), "the others may have had the sum before one rank's attempt failed"
    assert "sleep_for_ever" in (run.dir / "logs" / "rank-2.log").read_text()
    assert not any("sleep_for_ever" in (run.dir / "logs" / f"rank-{rank}.log").read_text() for rank in (0, 1, 3))
    report = run.exact(STEPS)
    assert (report.sizes, report.repeated) == ((4,), 0)
    assert run.ending() == calm(4) and run.gone()


def test_nobody_is_judged_by_a_coordinator_that_stood_still(run):
    """It was stopped (Ctrl-Z, a hung file system) for longer than elastic.heartbeat_timeout. The workers wait, as it might
    have gone on with others, and go on in the same round."""
    run.start("train.epochs=null", "train.steps=100000", "task.args.slow=0.01", "elastic.heartbeat_timeout=1s",
              "log.ledger=true", workers=2)
    run.until_step(5)
    run.process.send_signal(signal.SIGSTOP)
    stopped = time.time()
    time.sleep(2.5)
    before, continued = run.last_step(), time.time()
    run.process.send_signal(signal.SIGCONT)
    run.until_step(before + 30)  # it has caught up with what they had done meanwhile
    time.sleep(1.5)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait().returncode == 143
    assert not run.events("worker_lost") and not run.events("stall") and len(run.events("round")) == 1
    times = [line.time for line in ledger.read(run.dir / "ledger").committed]
    assert not [at for at in times if stopped + 1.0 < at < continued], "a lease outlived elastic.heartbeat_timeout"
    assert run.gone()
