"""The same training whatever the number of workers and whoever launches them; exact resumption."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.support.runs import Run, ledger

STEPS = ("train.epochs=null", "train.steps=40")


def largest_difference(one: dict[int, float], other: dict[int, float]) -> float:
    assert one.keys() == other.keys() and len(one) == 40
    return max(abs(one[step] - other[step]) for step in one)


def test_equal_losses_for_any_number_of_workers(tmp_path):
    runs = {}
    for workers in (1, 2, 3, 4):
        runs[workers] = Run(tmp_path, f"w{workers}")
        runs[workers].run(*STEPS, workers=workers)
        assert runs[workers].records("metrics.jsonl")[0]["world_size"] == workers
    again = Run(tmp_path, "again")
    again.run(*STEPS, workers=3)
    for workers in (2, 3, 4):
        assert largest_difference(runs[1].losses(), runs[workers].losses()) < 1e-5
    assert largest_difference(runs[3].losses(), again.losses()) == 0
    assert runs[3].digest() == again.digest() != runs[2].digest()


def test_accumulation_clipping_and_averages_do_not_depend_on_the_workers(tmp_path):
    settings = (*STEPS, "data.micro_batch=5", "train.grad_clip=0.5", "train.ema=0.9",
                "optim={name: sgd, lr: 0.1, momentum: 0.9, schedule: {name: cosine, warmup: 10%}}")
    runs = {workers: Run(tmp_path, f"w{workers}") for workers in (1, 3)}
    for workers, run in runs.items():
        run.run(*settings, workers=workers)
    assert largest_difference(runs[1].losses(), runs[3].losses()) < 1e-5
    evaluations = [[r["loss"] for r in run.records("metrics.jsonl") if r["kind"] == "eval"] for run in runs.values()]
    assert evaluations[0] == pytest.approx(evaluations[1], abs=1e-5) and len(evaluations[0]) >= 5


def test_horovodrun_gives_the_same_numbers(tmp_path):
    """`horovodrun -np 2 hvtrain run` makes agents of its processes; the training is the same to the bit, although a worker
    is killed in it."""
    launcher = Path(sys.executable).parent / "horovodrun"
    if not launcher.exists():
        pytest.fail(f"{launcher} is missing: the engine is not installed in this environment")
    alone, under = Run(tmp_path, "alone"), Run(tmp_path, "under")
    alone.run(*STEPS, workers=2)
    under.run(*STEPS, prefix=(str(launcher), "-np", "2"),
              faults=[{"kind": "kill", "step": 20, "phase": "bucket", "rank": 1}])
    assert len(under.struck()) == len(under.events("worker_lost")) == 1
    assert largest_difference(alone.losses(), under.losses()) == 0
    assert alone.digest() == under.digest()
    assert under.records("metrics.jsonl")[0]["world_size"] == 2
    assert under.gone()


def test_killing_everything_and_resuming_changes_no_bit(tmp_path):
    workers = 4
    whole, torn = Run(tmp_path, "whole"), Run(tmp_path, "torn")
    settings = (*STEPS, "task.args.norm=true", "data.global_batch=33", "optim.schedule={name: cosine, warmup: 10%}",
                "train.ema=0.99")
    whole.run(*settings, workers=workers)
    torn.start(*settings, "task.args.slow=0.05", workers=workers)
    torn.until_step(23)
    victims = torn.pids()
    assert len(victims) >= workers + 3  # launcher, agent, warm process, workers
    torn.kill_all()
    assert torn.wait().returncode == -signal.SIGKILL
    assert torn.gone()
    torn.run(*settings, workers=workers)
    assert torn.events("resumed")[0]["step"] == 20
    assert torn.digest() == whole.digest()
    assert torn.losses() == whole.losses()
    steps = [r["step"] for r in torn.records("metrics.jsonl") if r["kind"] == "train"]
    assert steps == sorted(set(steps)), "a repeated step must not stand in metrics.jsonl twice"


def test_resuming_on_fewer_workers_uses_every_sample_once(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    run = Run(tmp_path)
    run.start(f"task.args.ledger={first}", "task.args.slow=0.05", "train.epochs=5", workers=4)
    run.until_step(13)
    run.kill_all()
    run.wait()
    run.run(f"task.args.ledger={second}", "train.epochs=5", workers=3)
    resumed = run.events("resumed")[0]["step"]
    assert resumed == 10
    used = {**{k: v for k, v in ledger(first).items() if k <= resumed}, **ledger(second)}
    assert sorted(used) == list(range(1, 41))
    for epoch in range(5):  # 230 samples in batches of 32: 8 steps an epoch, the last one short
        samples = [s for step in range(8 * epoch + 1, 8 * epoch + 9) for s in used[step]]
        assert sorted(samples) == list(range(230))


def test_fewer_samples_than_ranks(tmp_path):
    """17 samples in batches of 16 on 4 ranks: the last batch has one sample, three ranks have none."""
    book = tmp_path / "book"
    book.mkdir()
    one, four = Run(tmp_path, "one"), Run(tmp_path, "four")
    settings = ("task.args.samples=17", "data.global_batch=16", "train.epochs=20", "task.args.norm=false")
    one.run(*settings, workers=1)
    four.run(*settings, f"task.args.ledger={book}", workers=4)
    assert largest_difference(one.losses(), four.losses()) < 1e-5
    assert all(len(samples) == (16 if step % 2 else 1) for step, samples in ledger(book).items())


def test_damaged_checkpoints_are_skipped_and_named(tmp_path):
    run = Run(tmp_path)
    run.run(*STEPS, workers=1)
    whole = run.digest()
    kept = sorted((run.dir / "checkpoints").iterdir())
    weights = kept[-1] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (kept[-2] / "manifest.json").unlink()
    run.run(*STEPS, workers=1)
    log = run.logs()
    assert run.events("resumed")[-1]["step"] == 20
    assert "step-00000040" in log and "step-00000030" in log and "skipped" in log
    assert run.digest() == whole


def test_resume_never_keeps_the_former_run(tmp_path):
    run = Run(tmp_path)
    run.run(*STEPS, workers=1)
    before = run.digest()
    run.run(*STEPS, "checkpoint.resume=never", "run.seed=5", workers=1)
    aside = list(tmp_path.glob("run.before-*"))
    assert len(aside) == 1 and run.digest() != before
    shutil.rmtree(run.dir)
    os.rename(aside[0], run.dir)
    assert run.digest() == before


def test_a_finished_run_has_nothing_to_do(tmp_path):
    run = Run(tmp_path)
    run.run(*STEPS, workers=1)
    again = run.run(*STEPS, workers=1)
    assert "nothing to do" in again.stdout and run.status()["state"] == "done" and run.status()["step"] == 40
