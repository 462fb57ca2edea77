"""What is true of lost workers is true of Keras: kills at every point, a frozen worker, graphs that compute for long."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from hvtrain.probe import PHASES
from tests.support.keras_runs import KerasRun
from tests.support.runs import hvtrain
from tests.support.whole_job import STEPS, WHOLE

pytest.importorskip("tensorflow")

LONG = ("train.epochs=null", "train.steps=100000", "task.args.slow=0.01")
PLAIN = ("train.epochs=null", f"train.steps={STEPS}", "data.global_batch=33", "log.ledger=true")


@pytest.fixture
def run(tmp_path):
    """A job that has not been started; nothing of it outlives the test."""
    job = KerasRun(tmp_path)
    (tmp_path / "ledger").mkdir()
    yield job
    job.kill_all()


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """What an undisturbed run of ``WHOLE`` on so many workers ends with; each is made once."""
    endings = {}

    def ending(workers: int) -> dict:
        if workers not in endings:
            job = KerasRun(tmp_path_factory.mktemp("calm"))
            done = job.run(*WHOLE, workers=workers)
            assert job.exact(STEPS).repeated == 0
            assert not done.stderr, "what TensorFlow says of itself belongs into the workers' logs"
            endings[workers] = job.ending()
        return endings[workers]

    return ending


def fault(kind: str, phase: str, rank: int | list[int], step: int | None = None, **more: int) -> dict:
    return {"kind": kind, "phase": phase, "rank": rank, **({} if step is None else {"step": step}), **more}


def kill(phase: str, rank: int | list[int], step: int | None = None, **more: int) -> dict:
    return fault("kill", phase, rank, step, **more)


IN_STEPS = ("forward", "backward", "bucket", "reduced", "optimizer", "committed")


def in_every_phase(rank: int, other: int) -> list[dict]:
    """Kills of ``rank`` in each phase. While a round is being formed it is once a survivor (``other`` was killed before)
    and once the replacement."""
    found = [
        *(kill(phase, rank, step=10 + 8 * number) for number, phase in enumerate(IN_STEPS)),
        kill("evaluation", rank, step=58), kill("start", rank, round=3), kill("joining", rank, round=4),
        kill("backward", other, step=66), kill("forming", rank, round=9),
        kill("backward", other, step=74), kill("state", rank, round=11, count=2)]
    return [*found, kill("checkpoint", 0, step=88)] if rank == 0 else found


def lives_through(run: KerasRun, calm: dict, faults: list[dict], workers: int) -> None:
    """Every fault reaches its victim, each victim is lost and replaced, and nothing shows in the end."""
    run.run(*WHOLE, workers=workers, faults=faults, seconds=150)
    assert len(run.events("worker_lost")) == len(run.struck())
    assert not run.events("rollback")
    report = run.exact(STEPS)
    assert (report.sizes, report.repeated) == ((workers,), 0)
    assert run.ending() == calm and run.gone()


def test_killed_in_every_phase_in_turns(run, calm):
    """Each phase once, the first and the last rank by turns; while a round is being formed it is the replacement."""
    phases = [kill(phase, number % 2, step=10 + 8 * number) for number, phase in enumerate(IN_STEPS)]
    lives_through(run, calm(2), [*phases, kill("evaluation", 0, step=58), kill("start", 1, round=3),
                                 kill("joining", 0, round=4), kill("forming", 0, round=6), kill("state", 0, round=7),
                                 kill("checkpoint", 0, step=88)], workers=2)
    assert {strike.phase for strike in run.struck()} == set(PHASES)


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("rank,other", [(0, 2), (2, 1)])
def test_killed_in_every_phase(run, calm, rank, other):
    lives_through(run, calm(4), in_every_phase(rank, other), workers=4)


@pytest.mark.soak
def test_all_at_once_go_on_from_memory(run, calm):
    """As long as one is left nothing is lost. Then the host's memory still has the last snapshot."""
    run.run(*WHOLE, "elastic.snapshot_every=7 steps", workers=2, faults=[
        kill("forward", [0, 1], step=40), fault("raise", "backward", 1, step=60)])
    assert len(run.struck()) == len(run.events("worker_lost")) == 3
    rollback, = run.events("rollback")
    # Steps 36 to 39 come after the snapshot of step 35, and are taken again.
    assert (rollback["source"], rollback["step"], rollback["steps"]) == ("memory", 35, 4)
    report = run.exact(STEPS)
    assert (report.sizes, report.repeated) == ((2,), 4)
    assert run.ending() == calm(2) and run.gone()


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_two_and_three_at_once_lose_nothing(run, calm):
    lives_through(run, calm(4), [kill("bucket", [1, 2], step=20), kill("backward", [0, 3], step=35),
                                 kill("reduced", [0, 1, 2], step=50), kill("optimizer", [1, 2, 3], step=65)], workers=4)


@pytest.mark.soak
def test_a_graph_may_compute_for_long_but_not_for_ever(run, calm):
    """While TensorFlow computes, no line of Python is run, but the heartbeat goes on. Then a graph hangs: its worker is
    killed, not the one that waits for it; and a stopped worker is noticed by its silence."""
    busy = "[{rank: 0, step: 20, seconds: 3}, {rank: 1, step: 50, seconds: 3600}]"
    run.run(*WHOLE, "elastic.heartbeat_timeout=1.5s", "elastic.step_timeout=5s", f"task.args.ledger={run.base / 'ledger'}",
            f"task.args.busy={busy}", workers=2, faults=[fault("stop", "bucket", 0, step=80)])
    run.struck()
    lost = [(event["rank"], event["cause"]) for event in run.events("worker_lost")]
    assert lost == [(1, "stuck"), (0, "silent")]
    assert sorted(path.name for path in (run.base / "ledger").iterdir()) == ["busy.0", "busy.1"]
    log = (run.dir / "logs" / "rank-1.log").read_text()
    assert "in compute" in log, "the stacks of who hangs tell where"
    assert run.exact(STEPS).repeated == 0
    assert run.ending() == calm(2) and run.gone()


@pytest.mark.soak
def test_cut_connections_and_failed_reductions_cost_a_round_only(run, calm):
    run.run(*WHOLE, workers=3, faults=[fault("cut", "forward", 2, step=20), fault("fail", "bucket", 0, step=40)])
    run.struck()
    assert not run.events("worker_lost") and len(run.events("round")) == 3
    assert run.exact(STEPS).repeated == 0
    assert run.ending() == calm(3) and run.gone()


@pytest.mark.soak
def test_long_tracing_is_no_silence(run):
    """Tracing is Python, which leaves the heartbeat its share of the time; a replacement traces while the others wait."""
    run.run("train.epochs=null", "train.steps=20", "task.args.layers=40", "elastic.heartbeat_timeout=1s",
            "elastic.replace_timeout=60s", "log.ledger=true", workers=2, faults=[kill("bucket", 1, step=10)])
    run.struck()
    assert [event["cause"] for event in run.events("worker_lost")] == ["killed"]
    assert run.exact(20).sizes == (2,) and run.gone()


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_killed_at_random(run, calm):
    run.run(*WHOLE, "elastic.max_losses_per_hour=null", "elastic.max_failures_per_step=10", "task.args.slow=0.1",
            workers=4, faults=[{"kind": "kill", "every": "1s", "during": "15s"}])
    strikes = run.struck()
    assert len(strikes) >= 6 and len(run.events("worker_lost")) == len(strikes)
    report = run.exact(STEPS)
    assert report.sizes == (4,) and report.repeated == sum(event["steps"] for event in run.events("rollback"))
    assert run.ending() == calm(4) and run.gone()


@pytest.mark.soak
def test_killing_everything_and_resuming_changes_no_bit(run, calm):
    run.start(*WHOLE, "task.args.slow=0.05", workers=2)
    run.until_step(43)
    run.kill_all()
    assert run.wait().returncode == -signal.SIGKILL and run.gone()
    run.run(*WHOLE, workers=2)
    assert [event["step"] for event in run.events("resumed")] == [40]
    assert run.ending() == calm(2) and run.gone()


@pytest.mark.soak
def test_scaled_up_and_down(run, tmp_path_factory):
    """Each change costs one round, and the mathematics stay the same."""
    alone = KerasRun(tmp_path_factory.mktemp("alone"))
    alone.run(*PLAIN, workers=1)
    run.start(*PLAIN, "task.args.slow=0.08", workers=2)
    for workers, rounds in ((3, 2), (1, 3)):
        run.until_step(run.last_step() + 5)
        run.scale(workers)
        run.until(lambda: len(run.events("resize")) == rounds - 1, f"{workers} workers")
    assert run.wait().returncode == 0
    assert [(event["old"], event["new"]) for event in run.events("resize")] == [(2, 3), (3, 1)]
    report = run.exact(STEPS)
    assert (report.sizes, report.repeated, report.retried) == ((1, 2, 3), 0, 0)
    assert run.losses() == pytest.approx(alone.losses(), abs=1e-5) and run.gone()


@pytest.mark.soak
@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_is_made_after_a_checkpoint(run, number, code):
    run.start(*LONG, workers=2)
    run.until_step(12)
    run.process.send_signal(number)
    done = run.wait(15)
    assert done.returncode == code and "after a checkpoint" in done.stderr
    saved, status = run.events("checkpoint")[-1]["step"], run.status()
    assert saved >= 12 and saved == status["step"]
    assert (status["state"], status["resumable"]) == ("stopped", True)
    assert hvtrain("ckpt", "verify", str(run.dir)).returncode == 0
    assert run.gone()


@pytest.mark.soak
def test_horovodrun_gives_the_same_numbers(run, calm):
    launcher = Path(sys.executable).parent / "horovodrun"
    run.run(*WHOLE, prefix=(str(launcher), "-np", "2"), faults=[kill("bucket", 1, step=20), kill("optimizer", 0, step=50)])
    assert len(run.struck()) == len(run.events("worker_lost")) == 2
    assert run.ending() == calm(2) and run.gone()


@pytest.mark.soak
def test_a_module_that_has_tensorflow_compute_is_not_forked(run):
    """TensorFlow's first operation starts threads, which a forked process would lack."""
    done = run.run("train.epochs=null", "train.steps=3", workers=1, TEST_START_THREAD="1")
    assert "spawn instead of fork" in done.stdout and "let Task.model do that" in done.stdout
    assert run.events("start_method") and run.status()["state"] == "done" and run.gone()
    assert not done.stderr, "what TensorFlow says of itself belongs into the workers' logs"
