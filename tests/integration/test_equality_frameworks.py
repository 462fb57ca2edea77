"""One task in three frameworks: the same losses, step by step, alone and on three workers."""

from __future__ import annotations

import pytest

from hvtrain.checkpoint import Store
from tests.support import digits
from tests.support.conformance import FRAMEWORKS, load
from tests.support.runs import Run

STEPS = 50
SETTINGS = ("train.epochs=null", f"train.steps={STEPS}", "optim={name: sgd, lr: 0.1}", "data.global_batch=64",
            "elastic.replace_timeout=60s")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``trained(framework, workers)``: a run that is over; each is made once."""
    runs = {}

    def run(framework: str, workers: int, name: str = "run", *settings: str, **more) -> Run:
        key = framework, workers, name
        if key not in runs:
            runs[key] = Run(tmp_path_factory.mktemp(f"{framework}-{workers}"), name)
            target = f"{digits.__name__}.in_{framework}:Digits"
            runs[key].run(*SETTINGS, f"framework={framework}", f"task.target={target}", *settings, workers=workers, **more)
        return runs[key]

    return run


def curve(run: Run, workers: int) -> list[float]:
    records = [record for record in run.records("metrics.jsonl") if record["kind"] == "train"]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert {record["world_size"] for record in records} == {workers}
    return [record["loss"] for record in records]


def weights(run: Run, framework: str):
    store = Store(run.dir / "checkpoints")
    return load(framework).module.read(store.read(store.newest_sound()).groups["model"])


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 3])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_all_frameworks_follow_the_same_curve(trained, framework, workers):
    """Stochastic gradient descent from equal weights, on the same samples: to 1e-4 for 50 steps."""
    reference, run = trained("numpy", 1), trained(framework, workers)
    wanted = curve(reference, 1)
    assert wanted[0] > 2 and sum(wanted[-5:]) / 5 < 1.6, "it learns"
    assert curve(run, workers) == pytest.approx(wanted, abs=1e-4)
    found = weights(run, framework)
    for name, array in weights(reference, "numpy").items():
        assert found[name] == pytest.approx(array, abs=1e-4), name


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_two_replicas_of_two_stages_follow_the_same_curve(trained, framework):
    """Layers over two stages, four micro-batches, two replicas: the losses of one process with the whole model, to 1e-5."""
    found = trained(framework, 2, "staged", f"hybrid={{stages: 2, microbatches: 4, split: [2, 1], devices: cpu}}")
    assert curve(found, 2) == pytest.approx(curve(trained("numpy", 1), 1), abs=1e-5)


def test_the_reference_survives_its_workers(trained):
    """Elasticity is the loop's: an adapter that keeps to the protocol has it."""
    calm = trained("numpy", 3)
    torn = trained("numpy", 3, "torn", faults=[{"kind": "kill", "step": 12, "phase": "bucket", "rank": 1},
                                               {"kind": "kill", "step": 30, "phase": "optimizer", "rank": 0}])
    assert len(torn.struck()) == len(torn.events("worker_lost")) == 2
    losses = torn.losses()  # without the lines that rank 0 had not sent when it died
    assert len(losses) > STEPS - 5 and losses.items() <= calm.losses().items()
    assert torn.digest() == calm.digest()
