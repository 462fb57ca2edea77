"""There is no endless loop: a step that fails again and again ends the job, with the error of who failed first."""

from __future__ import annotations


def test_a_step_that_raises_each_time_ends_the_job_with_its_traceback(run):
    """Three attempts at the step with the broken sample, by three workers; then the job ends as if it were the first."""
    done = run.run("task.args.bad_sample=77", "task.args.norm=true", "log.ledger=true", workers=3, code=1)
    lost = run.events("worker_lost")
    failed, = {event["step"] for event in lost}
    rank, = {event["rank"] for event in lost}
    assert [event["cause"] for event in lost] == ["raised"] * len(lost) and len(lost) in (2, 3)
    assert done.stderr.startswith(f"hvtrain: step {failed + 1} failed 3 times (elastic.max_failures_per_step). The first "
                                  f"failure: rank {rank}: ValueError: sample 77 is broken")
    assert "in loss" in done.stderr and "losed by peer" not in done.stderr
    status = run.status()
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert run.ending()["step"] == failed, "the last good step is saved"
    assert run.gone()
