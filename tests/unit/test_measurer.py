"""Having a model measured: what one thread alone takes is found first, and is not lost with what comes after it."""

from __future__ import annotations

from dataclasses import replace

from hvtrain.config import Job
from hvtrain.errors import EnvironmentNotReady
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.measurement import Measurement
from hvtrain.hybrid.speeds import Speeds
from hvtrain.launch import measurer

JOB = Job.model_validate({"task": {"target": "m:t"}, "data": {"global_batch": 4}, "train": {"epochs": 1},
                          "optim": {"name": "sgd", "lr": 1.0}})


def test_processes_that_run_out_of_memory_at_once_do_not_cost_the_measurement(monkeypatch, tmp_path) -> None:
    """One process loaded the data set and was well; of four the kernel killed one, and the plan failed."""
    alone = Measurement(Speeds((ModelCosts((LayerCost("a", 1.0, 2.0, 4, 4, 4),), batch=2, device="cpu"),)))
    asked = []

    def measure(requests):
        asked.append(len(requests))
        if len(asked) == 1:
            return [alone]
        raise EnvironmentNotReady("the process that measures the model ended without an answer (status -9).")

    monkeypatch.setattr(measurer.trials, "measure", measure)
    monkeypatch.setattr(measurer.machine, "cores", lambda: 2)
    job = JOB.model_copy(update={"run": JOB.run.model_copy(update={"dir": str(tmp_path)})})
    said = []
    found = measurer.obtain(job, "/code", workers=1, threads=2, fresh=True, say=said.append)
    assert asked == [1, 1, 2] and found.speeds == alone.speeds and found.key
    assert ["with 2 threads" in said[0], "with 2 processes at once" in said[1], "status -9" in said[1]] == [True] * 3


KEPT = ModelCosts((LayerCost("a", 1.0, 2.0, 4, 4, 4),), batch=2, device="cpu")


def asked(monkeypatch, tmp_path, cores=16):
    """The requests of all measurements, as lists of what was asked at once; and a function that obtains one, and keeps it."""
    rounds = []

    def measure(requests):
        rounds.append(requests)
        return [Measurement(Speeds(tuple(replace(KEPT, batch=size) for size in request.sizes))) for request in requests]

    monkeypatch.setattr(measurer.trials, "measure", measure)
    monkeypatch.setattr(measurer.machine, "cores", lambda: cores)
    job = JOB.model_copy(update={"run": JOB.run.model_copy(update={"dir": str(tmp_path)}),
                                 "data": JOB.data.model_copy(update={"global_batch": 1024})})

    def obtain(workers, threads):
        rounds.clear()
        found = measurer.obtain(job, "/code", workers=workers, threads=threads)
        measurer.keep(job.run.dir, found)
        return found

    return rounds, obtain


def test_a_measurement_for_sixteen_workers_does_not_stand_for_one_with_sixteen_threads(monkeypatch, tmp_path) -> None:
    """`hvtrain run -np 16` had measured one thread with a sixteenth of the batch; `hvtrain plan` took it for its own, and
    predicted one worker to be as slow as with one thread. The next measurement serves both."""
    rounds, obtain = asked(monkeypatch, tmp_path)
    first = obtain(workers=16, threads=1)
    assert (first.sizes, first.threads) == ((4, 16, 64), 1)
    both = obtain(workers=1, threads=16)
    assert rounds and both.sizes == (4, 16, 64, 256, 1024) and both.threads == both.speeds.threads == 16
    for workers, threads in ((16, 1), (1, 16), (4, 4)):
        assert obtain(workers, threads) == both and not rounds


def test_what_memory_did_not_allow_is_not_asked_for_again(monkeypatch, tmp_path) -> None:
    rounds, obtain = asked(monkeypatch, tmp_path)
    once = measurer.trials.measure

    def little_memory(requests):
        return [replace(found, speeds=Speeds(found.speeds.alone[:1])) for found in once(requests)]

    monkeypatch.setattr(measurer.trials, "measure", little_memory)
    obtain(workers=1, threads=16)
    obtain(workers=1, threads=16)
    assert not rounds


def test_all_cores_are_kept_busy_where_several_processes_measure_at_once(monkeypatch, tmp_path) -> None:
    """Four threads of sixteen would say little about sixteen: their noise counts five times. And what several threads take
    beside others is held against as many alone."""
    rounds, obtain = asked(monkeypatch, tmp_path)
    found = obtain(workers=16, threads=1)
    assert [[request.threads for request in requests] for requests in rounds] == [[1], [4], [4] * 4]
    assert (found.speeds.threads, found.speeds.at_once, found.speeds.each) == (4, 4, 4)
