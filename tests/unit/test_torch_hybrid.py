"""The PyTorch adapter with a model in stages: the training is that of the whole model, whatever the number of stages."""

from __future__ import annotations

import hashlib
import json
import traceback

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import ArraySource, Job, Task
from hvtrain.adapters.torch.adapter import TorchAdapter
from hvtrain.data.sampler import even, split
from hvtrain.engine.world import SoloWorld
from hvtrain.errors import RoundBroken, UsageError, UserCodeError
from hvtrain.hybrid.torch import pipeline
from tests.support.conformance import Breaking
from tests.support.precision import half
from tests.support.threads import together

SAMPLES = 24
LAYERS = 8
SPLITS = {1: [8], 2: [3, 5], 3: [2, 4, 2], 4: [1, 3, 2, 2]}


class Head(nn.Module):
    """Computes with the weight of the first layer."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.bias = weight, nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return F.linear(x, self.weight.t(), self.bias)


class Regression(Task):
    """Through normalisation, tied weights and, if asked for, dropout."""

    def __init__(self, dropout=0.0, norm=True):
        self.dropout, self.norm, self.broken = dropout, norm, None
        generator = torch.Generator().manual_seed(3)
        self.points = torch.randn(SAMPLES, 8, generator=generator)
        self.wanted = self.points.square()

    def model(self):
        first = nn.Linear(8, 24, bias=False)
        return nn.Sequential(first, nn.BatchNorm1d(24) if self.norm else nn.Identity(), nn.ReLU(inplace=True),
                             nn.Linear(24, 24), nn.Dropout(self.dropout), nn.Tanh(), nn.Linear(24, 24), Head(first.weight))

    def data(self, name):
        return ArraySource(self.points, self.wanted)

    def loss(self, outputs, batch):
        if self.broken is not None and torch.is_grad_enabled():
            raise self.broken
        return F.mse_loss(outputs.float(), batch[1], reduction="none").mean(1)

    def metrics(self, outputs, batch):
        return {"error": (outputs - batch[1]).abs().mean(1)}


def hybrid(stages, more):
    return {"stages": stages, "microbatches": 4, "split": SPLITS[stages], "devices": "cpu", **more}


class Rank:
    """An adapter; its share of each step is cut into as many micro-batches as ``hybrid`` says, or 4."""

    def __init__(self, stages=None, world=None, task=None, learn=True, tick=lambda: None, options=None, **sections):
        section = {} if stages is None else {"hybrid": hybrid(stages, options or {})}
        settings = {"task": {"target": "t:T"}, "optim": {"name": "adamw", "lr": 1e-2}, **section, **sections}
        settings["comm"] = {"bucket_mb": 0.004, "first_bucket_mb": 0.001, "shared_memory": False, **sections.get("comm", {})}
        self.task, self.world, self.step, self.metrics = task or Regression(), world or SoloWorld(), 0, {}
        self.pieces = section["hybrid"]["microbatches"] if section else 4
        self.adapter = TorchAdapter(Job.model_validate(settings), self.task, threads=1, tick=tick)
        self.adapter.build()
        if learn:
            self.adapter.warm_up(lambda: ((self.task.points[:6], self.task.wanted[:6]), 6))
        self.adapter.join(self.world)

    def gradients(self, samples=SAMPLES):
        self.adapter.seed(self.step)
        shares = even(split(np.arange(samples), self.world.rank, self.world.size), self.pieces)
        batches = [(self.task.points[share], self.task.wanted[share]) for share in shares]
        return self.adapter.gradients(batches, [len(share) for share in shares], samples, [1.0])

    def train(self, steps, samples=SAMPLES):
        """The losses of so many steps."""
        found = []
        for _ in range(steps):
            found.append(self.gradients(samples).loss)
            self.metrics = self.adapter.apply(self.step, 1.0)
            self.step += 1
        return found

    def grads(self):
        return {name: p.grad.clone() for name, p in self.adapter.model.named_parameters() if p.requires_grad}

    def evaluate(self, ema=False):
        return self.adapter.evaluate([((self.task.points, self.task.wanted), SAMPLES)], ema)

    def state(self):
        found = {f"{group}/{name}": hashlib.sha256(bytes(blob.data)).hexdigest()
                 for group, blobs in self.adapter.export().items() for name, blob in blobs.items()}
        return {**found, "scalars": json.dumps(self.adapter.scalars(), sort_keys=True)}


RICH = {"train": {"ema": 0.9, "grad_clip": 0.5}}


# The same training ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("stages", SPLITS)
def test_the_training_is_that_of_the_whole_model(stages):
    whole, rank = Rank(**RICH), Rank(stages, **RICH)
    assert rank.train(10) == pytest.approx(whole.train(10), rel=1e-5)
    theirs = whole.adapter.export()
    assert {group: list(blobs) for group, blobs in rank.adapter.export().items()} == {
        group: list(blobs) for group, blobs in theirs.items()}
    for name, weight in whole.adapter.model.state_dict().items():
        torch.testing.assert_close(rank.adapter.model.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    for ema in (False, True):
        assert rank.evaluate(ema) == pytest.approx(whole.evaluate(ema), rel=1e-5)
    assert rank.evaluate(True) != rank.evaluate(False)
    assert rank.metrics["grad_norm"] == pytest.approx(whole.metrics["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"schedule": "gpipe"}, {"recompute": True}, {"schedule": "gpipe", "recompute": True}],
                         ids=str)
def test_no_bit_depends_on_the_number_of_stages(options):
    expected = None
    for stages in SPLITS:
        rank = Rank(stages, task=Regression(dropout=0.5), options=options, **RICH)
        losses, state = rank.train(4), rank.state()
        expected = expected or (losses, state, rank.evaluate(True))
        assert (losses, state, rank.evaluate(True)) == expected, stages


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=half)])
def test_mixed_precision(stages, precision):
    sections = {"train": {"precision": precision, **({"loss_scale": 1024} if precision == "fp16" else {})}}
    one, rank = Rank(1, **sections), Rank(stages, **sections)
    assert one.train(4) == rank.train(4) and one.state() == rank.state()
    assert one.train(1) == pytest.approx(Rank(**sections).train(5)[-1:], rel=0.02)


class Poor(Regression):
    """The last layers have no parameters of their own: one computes with the first one's weight, one with none."""

    def model(self):
        first = nn.Linear(8, 8)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), first, nn.Softplus())


@pytest.mark.parametrize("split", [[4, 1, 1], [3, 2, 1], [5, 1], [2, 2, 1, 1]], ids=str)
def test_a_last_stage_may_own_no_parameter(split):
    """Once the first step ended in an IndexError: only stages with parameters were counted."""
    alone = Rank(1, task=Poor(), options={"split": [6]})
    rank = Rank(len(split), task=Poor(), options={"split": split, "stages": len(split)})
    assert rank.train(3) == alone.train(3) and rank.state() == alone.state()


def test_frozen_groups_have_no_gradient():
    sections = {"optim": {"name": "sgd", "lr": 0.1, "groups": [{"params": "3.*", "freeze": True}]}}
    whole, rank = Rank(**sections), Rank(3, **sections)
    assert rank.train(3) == pytest.approx(whole.train(3), rel=1e-5)
    assert rank.adapter.model[3].weight.grad is None and rank.grads().keys() == whole.grads().keys()


@pytest.mark.parametrize("samples", [1, 3, 7])
def test_fewer_samples_than_micro_batches(samples):
    whole, rank = (Rank(stages, task=Regression(norm=False)) for stages in (None, 3))
    assert rank.train(2, samples) == pytest.approx(whole.train(2, samples), rel=1e-5)


def test_without_having_been_tried_out_it_tries_its_first_micro_batch():
    first, second = Rank(2, task=Regression(dropout=0.5)), Rank(2, task=Regression(dropout=0.5), learn=False)
    assert first.train(2) == second.train(2) and first.state() == second.state()


def test_every_micro_batch_ticks_once():
    ticks = []
    Rank(3, tick=lambda: ticks.append(1)).train(2)
    assert len(ticks) == 8


# Replicas ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("samples, norm", [(SAMPLES, False), (SAMPLES, True), (1, False)])
def test_two_replicas_of_two_stages(samples, norm, monkeypatch):
    """One of them may have no sample at all. The loss curve is that of one worker without stages, but for normalisation
    over fewer samples."""
    monkeypatch.setattr(pipeline, "check_untouched", lambda before: None)  # the replicas, here threads, seed one generator
    task = Regression(norm=norm)

    def work(world):
        rank = ranks[world.rank]
        rank.world = world
        rank.adapter.join(world)
        return rank.train(6, samples), rank.state(), sorted(set(world.sums))

    ranks = [Rank(2, task=task, **RICH) for _ in range(2)]
    (losses, state, sums), other = together(work)
    assert (losses, state, sums) == other
    assert losses == pytest.approx(Rank(task=task, **RICH).train(6, samples), rel=0.1 if norm else 1e-5)


@pytest.mark.parametrize("codec", ["none", "fp16", "int8"])
def test_no_bucket_spans_stages_and_the_last_stages_come_first(codec):
    rank = Rank(3, comm={"codec": codec})
    gradients, stages = rank.adapter._gradients, rank.adapter._passes.stages
    assert stages == sorted(stages) and set(stages) == {0, 1, 2}
    found = [{stages[slot.index] for slot in bucket.slots} for bucket in gradients._plan]
    assert [each for each, in map(sorted, found)] == sorted((each for each, in map(sorted, found)), reverse=True)


def test_buckets_are_reduced_while_earlier_stages_have_their_last_backward_before_them():
    order = []

    class Noting(SoloWorld):
        def sum_async(self, tensor, name, codec="none"):
            order.append(name)

    rank = Rank(2, world=Noting())
    rank.adapter.model[0].weight.register_post_accumulate_grad_hook(lambda _: order.append("first layer"))
    rank.gradients()
    plan = rank.adapter._gradients._plan
    late = [f"grad.{number}" for number, bucket in enumerate(plan) if bucket.kind[2] == 1]
    assert late and order.count("first layer") == 4
    assert set(order[:len(order) - 1 - order[::-1].index("first layer")]) >= set(late)
    assert order[-1] == f"grad.{len(plan) - 1}" and sorted(set(order)) == sorted({*order})


class Mixed(Regression):
    """Its inputs() changes the targets as well, as mixing samples does."""

    def inputs(self, batch):
        batch[1] = batch[1] * 2 + 1
        return batch[0]


def test_what_inputs_puts_into_a_batch_is_there_for_the_loss():
    def losses(stages):
        task = Mixed(norm=False)
        rank = Rank(stages, task=task, learn=False)
        rank.adapter.seed(0)
        batches = [[task.points[part], task.wanted[part]] for part in even(np.arange(SAMPLES), 4)]
        found = rank.adapter.gradients(batches, [6] * 4, SAMPLES, [0.0]).loss
        return found, rank.adapter.evaluate([([task.points, task.wanted], SAMPLES)], False)

    (staged, measured), (whole, expected) = losses(2), losses(None)
    assert staged == pytest.approx(whole, rel=1e-5) and measured == pytest.approx(expected, rel=1e-5)


# State ---------------------------------------------------------------------------------------------------
def test_what_two_stages_have_saved_one_and_three_go_on_with():
    """To the bit as if they had been at it from the beginning."""
    task = {stages: Regression(dropout=0.5) for stages in SPLITS}
    saved = Rank(2, task=task[2], **RICH)
    saved.train(3)
    groups, scalars = saved.adapter.export(), json.loads(json.dumps(saved.adapter.scalars()))
    expected = saved.train(3), saved.state()
    for stages in (1, 3):
        rank = Rank(stages, task=task[stages], **RICH)
        rank.train(1)  # what it holds is overwritten
        rank.adapter.restore(groups, scalars)
        rank.step = 3
        assert (rank.train(3), rank.state()) == expected, stages


@pytest.mark.parametrize("where, number", [("start", 1), ("start", 2), ("start", 4), ("wait", 1), ("wait", 3)])
def test_a_broken_round_leaves_nothing_behind(where, number):
    """A sum that is started in a stage's thread, or by the main one, and the wait for it."""
    calm, rank = Rank(3, **RICH), Rank(3, **RICH)
    calm.train(2), rank.train(2)
    before = rank.state()
    rank.adapter.join(Breaking(where, number))
    with pytest.raises(RoundBroken):
        rank.gradients()
    assert rank.state() == before
    rank.adapter.join(SoloWorld())
    assert calm.train(2) == rank.train(2) and calm.state() == rank.state()


# What is refused -------------------------------------------------------------------------------------------
def test_an_error_of_the_task_keeps_its_traceback():
    rank = Rank(3)
    rank.task.broken = ValueError("no loss today")
    with pytest.raises(ValueError, match="no loss today") as caught:
        rank.gradients()
    assert "in loss\n" in "".join(traceback.format_exception(caught.value))
    rank.task.broken = None
    other = Rank(3)
    assert rank.train(2) == other.train(2)


def test_wrong_losses_are_refused_as_without_stages():
    task = Regression()
    task.loss = lambda outputs, batch: (outputs - batch[1]).square()
    with pytest.raises(UserCodeError, match="one loss per sample"):
        Rank(2, task=task)


@pytest.mark.parametrize("open_number", [{"stages": "auto"}, {"microbatches": "auto"}, {"split": None}], ids=str)
def test_what_is_not_settled_is_refused(open_number):
    with pytest.raises(UsageError, match="hvtrain plan"):
        Rank(2, options=open_number)


@pytest.mark.parametrize("devices, reason", [(["cpu", "gpu:0"], "'gpu:0'; with PyTorch"), (["meta", "cpu"], "'meta'; with"),
                                             (["cpu", "cuda:99"], "'cuda:99', but PyTorch sees [0-9]+ GPUs")])
def test_devices_that_are_not_there_are_refused(devices, reason):
    with pytest.raises(UsageError, match=reason):
        Rank(2, options={"devices": devices})


def test_a_split_that_does_not_fit_the_model_is_refused():
    with pytest.raises(UsageError, match="8"):
        Rank(2, options={"split": [3, 4]})


class Uncuttable(Regression):
    """Its layers() are not what forward does."""

    def model(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

            def layers(self):
                return [self.a, self.b]

            def forward(self, x):
                return self.b(self.a(x)) * 2

        return Model()


def test_a_chain_that_is_not_the_model_is_refused():
    with pytest.raises(UserCodeError, match="another function"):
        Rank(2, task=Uncuttable(), options={"split": [1, 1]})
    Rank(None, task=Uncuttable()).train(1)
