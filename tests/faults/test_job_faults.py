"""What ends a job, each with its own exit code and leaving nothing: mistakes, requests, and lost workers where nobody is to
be replaced (``elastic.enabled: false``)."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.runs import Run, hvtrain

LONG = ("train.epochs=null", "train.steps=100000", "task.args.slow=0.01")
RIGID = "elastic.enabled=false"


def with_fault(run: Run, kind: str, rank: int, step: int) -> tuple[str, ...]:
    return (*LONG, f"task.args.ledger={run.base / 'ledger'}",
            f"task.args.fault={{kind: {kind}, rank: {rank}, step: {step}}}")


def victim(run: Run) -> int:
    """The pid that the fault has reached."""
    return int((run.base / "ledger" / "fault.done").read_text())


def test_a_killed_worker_ends_a_rigid_job_and_no_committed_step_is_lost(run):
    done = run.run(RIGID, *with_fault(run, "kill", 0, 17), workers=3, code=144)
    assert victim(run) and "rank 0" in done.stderr and "SIGKILL" in done.stderr
    assert "go on from the last checkpoint with: hvtrain run" in done.stderr
    status = run.status()
    assert (status["state"], status["exit_code"], status["resumable"]) == ("failed", 144, True)
    # The victim died at the end of step 17: a survivor saved the last step that it had committed itself.
    assert run.events("checkpoint")[-1]["step"] in (16, 17, 18)
    assert run.gone()


def test_the_first_failing_rank_is_the_one_that_is_reported(run):
    done = run.run(RIGID, *with_fault(run, "raise", 1, 9), workers=3, code=1)
    assert victim(run)
    assert done.stderr.startswith("hvtrain: rank 1: ValueError: a mistake in the user's code")
    assert "in on_step_end" in done.stderr and "closed" not in done.stderr
    assert run.status()["exit_code"] == 1 and run.gone()


def test_a_worker_that_exits_by_itself_is_lost(run):
    done = run.run(RIGID, *with_fault(run, "exit", 1, 9), workers=2, code=144)
    assert "exit status 17" in done.stderr and victim(run) and run.gone()


def test_a_worker_that_hangs_in_user_code_ends_a_rigid_job(run):
    """Its process answers, so no heartbeat is missing; Horovod would wait for it without an end."""
    done = run.run(RIGID, *with_fault(run, "hang", 1, 9), "elastic.step_timeout=2s", workers=2, code=145)
    assert "rank 1 is alive but" in done.stderr and victim(run) and run.gone()


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoiled(run):
    done = run.run(*with_fault(run, "nan", 1, 9), workers=2, code=5)
    assert "the loss of step 10 is nan" in done.stderr and victim(run)
    assert "step 9" in done.stderr and run.gone()


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_is_made_after_a_checkpoint(run, number, code):
    run.start(*LONG, workers=2)
    run.until_step(12)
    assert run.process is not None
    run.process.send_signal(number)
    done = run.wait(15)
    assert done.returncode == code and "after a checkpoint" in done.stderr
    saved, status = run.events("checkpoint")[-1]["step"], run.status()
    assert saved >= 12 and saved % 10 or saved == status["step"]
    assert (status["state"], status["resumable"]) == ("stopped", True)
    assert hvtrain("ckpt", "verify", str(run.dir)).returncode == 0
    assert run.gone()


def test_sigterm_to_every_process_at_once_still_saves(run):
    """Service managers signal the whole group: the workers must not die of it before their checkpoint."""
    run.start(*LONG, workers=2)
    run.until_step(12)
    for pid in run.pids():
        os.kill(pid, signal.SIGTERM)
    done = run.wait(15)
    assert done.returncode == 143 and "after a checkpoint" in done.stderr and run.gone()


def test_a_worker_leaves_on_sigterm_and_is_replaced(run):
    run.start("train.epochs=null", "train.steps=60", "task.args.slow=0.02", "log.ledger=true", workers=2)
    run.until_step(5)
    os.kill(run.pid("hvtrain-w1"), signal.SIGTERM)
    assert run.wait().returncode == 0
    assert [event["reason"] for event in run.events("round")] == ["start", "leave"]
    report = run.exact(60)
    assert (report.sizes, report.repeated, report.retried) == ((2,), 0, 0)
    assert not run.events("worker_lost") and run.gone()


@pytest.mark.parametrize("name", ["hvtrain-agent", "hvtrain-warm"])
def test_no_orphan_is_left_when_a_process_above_the_workers_is_killed(run, name):
    run.start(RIGID, *LONG, workers=2)
    run.until_step(5)
    assert run.pid("hvtrain-w0") and run.pid("hvtrain-w1")
    os.kill(run.pid(name), signal.SIGKILL)
    assert run.wait(30).returncode == 144
    assert run.gone()


def test_user_code_that_starts_threads_makes_spawn_the_start_method(run):
    done = run.run("train.epochs=1", workers=2, TEST_START_THREAD="1")
    assert "spawn instead of fork" in done.stdout and "started 1 thread" in done.stdout
    assert run.events("start_method") and run.status()["state"] == "done" and run.gone()


def test_a_full_disk_is_said_clearly_and_older_checkpoints_stay(run, tmp_path):
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(small)]).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        done = run.run("train.epochs=50", f"checkpoint.dir={small}", "checkpoint.keep=50", workers=2, code=3)
        assert str(small) in done.stderr and "full" in done.stderr
        listed = hvtrain("ckpt", "verify", str(small))
        assert "step-00000010" in listed.stdout
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("overrides,code,text", [
    (("task.target=nowhere:Task",), 2, "names the module 'nowhere'"),
    (("task.target=tasks:Blob",), 2, "has no 'Blob'"),
    (("task.args.colour=red",), 2, "task.args do not fit"),
    (("framework=keras",), 1, "must give a keras.Model"),
    (("checkpoint.resume=/nowhere",), 4, "does not exist"),
    (("launch.interface=nonet0",), 3, "nonet0"),
    (("optim.groups=[{params: 'backbone.*', freeze: true}]",), 2, "matches no parameter"),
])
def test_mistakes_are_explained(run, overrides, code, text):
    done = run.run(*overrides, workers=2 if code == 1 else 1, code=code)
    assert text in done.stderr and run.gone()
    assert "go on from" not in done.stderr, "there is no checkpoint to go on from"
