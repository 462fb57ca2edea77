"""hvtrain.torch.fit: the same weights as by a loop of one's own, and what is refused because they would not be."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import hvtrain.torch  # noqa: E402
from hvtrain.errors import ConfigError, UsageError, UserCodeError  # noqa: E402
from hvtrain.fitting import settings  # noqa: E402

POINTS = torch.from_numpy(np.random.default_rng(3).normal(size=(22, 4)).astype("float32"))
DATA = TensorDataset(POINTS, (POINTS[:, 0] > 0).long())
QUIET = {"log": {"console": "off"}, "checkpoint": {"every": None}}


def model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none"), nn.functional.cross_entropy])
def test_a_model_is_trained_as_by_a_loop_of_ones_own(tmp_path, loss):
    """Also with a loss per sample; the learning rate that the config names is taken."""
    theirs, ours = model(), model()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.2, momentum=0.9)
    for _ in range(3):
        for points, labels in DataLoader(DATA, batch_size=8):
            optimizer.zero_grad()
            loss(theirs(points), labels).mean().backward()
            optimizer.step()
    config = {**QUIET, "run": {"dir": str(tmp_path)}, "data": {"shuffle": False}, "optim": {"lr": 0.2}, "train": {"epochs": 9}}
    outcome = hvtrain.torch.fit(
        ours, config, DATA, loss=loss, optimizer=torch.optim.SGD(ours.parameters(), lr=7.0, momentum=0.9), batch_size=8, epochs=3,
        validation=DATA, metrics={"accuracy": lambda outputs, labels: (outputs.argmax(1) == labels).float()})
    assert outcome.step == 9 and outcome.summary["metrics"].keys() == {"loss", "accuracy"}
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def scheduled():
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return network, {"optimizer": optimizer}


@pytest.mark.parametrize(("make", "words"), [
    (lambda: (model(), {"dataset": None}), "dataset is missing"),
    (lambda: ("model", {}), "must be a torch.nn.Module"),
    (lambda: (model(), {"loss": nn.CrossEntropyLoss(reduction="sum")}), "reduction='sum'"),
    (lambda: (model(), {"loss": nn.CrossEntropyLoss(weight=torch.ones(2))}), "divides by the weights"),
    (lambda: (model(), {"optimizer": torch.optim.SGD(model().parameters(), lr=0.1)}), "not the model's"),
    (scheduled, "scheduler is attached"),
    (lambda: (model(), {"config": POINTS}), "config is a Tensor"),
])
def test_what_would_not_be_what_it_is_in_a_loop(make, words):
    network, more = make()
    with pytest.raises(UsageError, match=words):
        hvtrain.torch.fit(network, **{"dataset": DATA, "loss": nn.CrossEntropyLoss(), **more})


def test_a_data_loader_is_refused_with_what_to_give():
    with pytest.raises(UserCodeError, match="loader's .dataset"):
        hvtrain.torch.fit(model(), dataset=DataLoader(DATA), loss=nn.CrossEntropyLoss())


def test_a_second_training_in_one_directory_is_refused(tmp_path):
    """It would find the first one's checkpoint there, and nothing to do."""
    def train():
        network = model()
        hvtrain.torch.fit(network, {**QUIET, "run": {"dir": str(tmp_path)}}, DATA, loss=nn.CrossEntropyLoss())

    train()
    with pytest.raises(UsageError, match="second time"):
        train()


def test_a_config_is_a_file_a_mapping_or_a_job(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("task: {target: 'a:b'}\ntrain: {steps: 5}\nlog: {every: '${train.steps}'}\n")
    expected = {"train": {"steps": 5}, "log": {"every": 5}}
    assert settings(path) == settings(expected) == expected
    job = hvtrain.Job.model_validate({"task": {"target": "a:b"}, **expected})
    assert settings(job) == expected
    path.write_text("train: {steps: many}\n")
    with pytest.raises(ConfigError, match="job.yaml:1: train.steps"):
        settings(path)
