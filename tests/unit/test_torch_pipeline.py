"""Micro-batches through stages: gradients are those of the unsplit model, to the bit the same for any number of stages."""

from __future__ import annotations

import threading
import traceback
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from hvtrain.errors import RoundBroken, UserCodeError
from hvtrain.hybrid.torch.borders import crossing, mapped, tensors
from hvtrain.hybrid.torch.lanes import Lane, StreamLane
from hvtrain.hybrid.torch.pipeline import Microbatch
from tests.support.stages import DATA, MODELS, SCHEDULES, loss, made, piped, same, trained, whole


# Gradients -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_unsplit_model(name, stages):
    """And its statistics; whatever the schedule and the number of micro-batches, recomputed or not, to the bit the same."""
    for microbatches in (1, 2, 5, 8):
        expected = trained(name, 1, microbatches)
        plain = whole(name, microbatches)
        assert plain.keys() == expected.keys()
        for key, value in plain.items():
            if value is None:
                assert expected[key] is None
            else:
                torch.testing.assert_close(expected[key], value, rtol=1e-6, atol=1e-6)
        for schedule in SCHEDULES:
            for recompute in (False, True):
                same(trained(name, stages, microbatches, schedule=schedule, recompute=recompute), expected)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_the_same_in_bfloat16(stages):
    """Autocast's cache of cast weights, which all threads share, is off: what is added up in which format is fixed."""
    def context(device):
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)

    one = trained("tied", 1, 4, context=context)
    assert not torch.equal(one["0.weight"], whole("tied", 4)["0.weight"])
    for _ in range(5):
        same(trained("tied", stages, 4, context=context), one)


def test_gradients_add_up_over_steps_and_start_anew():
    once = trained("norm", 2, 3)
    again = trained("norm", 2, 3, steps=3)
    same({key: once[key] for key in once if "running" not in key and "tracked" not in key},
         {key: again[key] for key in once if "running" not in key and "tracked" not in key})


def test_no_micro_batch_no_gradient():
    model = made("plain")
    piped(model, 2).run([])
    assert all(parameter.grad is None for parameter in model.parameters())


# Trying out ------------------------------------------------------------------------------------------------
def test_trying_out_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(8, 3))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    data, random = DATA.clone(), torch.default_generator.get_state()
    piped(model, 3, (data,))
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(data, DATA) and torch.equal(random, torch.default_generator.get_state())


def test_a_first_layer_that_writes_into_its_input():
    """The input is kept for the second forward pass, so the layer gets a copy."""
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))

    expected = trained("", 1, 4, model=model())
    for recompute in (False, True):
        same(trained("", 3, 4, model=model(), recompute=recompute), expected)


# Memory ----------------------------------------------------------------------------------------------------
class Saving(torch.autograd.Function):
    living = weakref.WeakSet()

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(made := x * 1)
        Saving.living.add(made)
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1


class Saves(nn.Module):
    def forward(self, x):
        return Saving.apply(x)


@pytest.mark.parametrize("schedule, recompute, most", [("gpipe", False, 6), ("1f1b", False, 2), ("gpipe", True, 1),
                                                       ("1f1b", True, 1)])
def test_what_is_kept_for_backward(schedule, recompute, most):
    """gpipe keeps all micro-batches, 1f1b as many as there are stages, recomputation that which it is at: seen when the
    last one has come to the last stage."""
    Saving.living.clear()
    kept = []

    def counting(outputs):
        kept.append(len(Saving.living))
        return loss(outputs)

    pipeline = piped(nn.Sequential(nn.Linear(4, 4), Saves(), nn.Linear(4, 4), nn.Linear(4, 4)), 2, schedule=schedule,
                     recompute=recompute)
    pipeline.run([Microbatch((part,), counting) for part in DATA[:12].tensor_split(6)])
    assert kept[-1] <= most and (recompute or schedule == "1f1b" or kept[-1] == most)
    assert not Saving.living


def test_the_threads_end_with_the_pipeline():
    before = set(threading.enumerate())
    pipeline = piped(made("plain"), 3)
    pipeline.run([Microbatch((DATA,), loss)])
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    del pipeline
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


# Failures --------------------------------------------------------------------------------------------------
class Trouble(nn.Module):
    """Raises ``error`` in its forward or backward pass number ``at`` since it was armed."""

    def __init__(self):
        super().__init__()
        self.error, self.where, self.left = None, "", 0

    def arm(self, error, where, at):
        self.error, self.where, self.left = error, where, at

    def reached(self, where):
        if where == self.where:
            self.left -= 1
            if self.left == 0:
                raise self.error

    def forward(self, x):
        self.reached("forward")
        x = x * 1
        x.register_hook(lambda gradient: self.reached("backward")) if x.requires_grad else None
        return x


@pytest.mark.parametrize("where", ["forward", "backward", "loss"])
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("error", [ValueError("a layer is broken"), RoundBroken("gone"), KeyboardInterrupt()])
def test_a_stage_that_raises_ends_the_step_and_the_next_one_is_right(stage, where, error):
    trouble = [Trouble() for _ in range(3)]
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for each in trouble for layer in (nn.Linear(4, 4), each)))
    pipeline = piped(model, 3)

    def losses(outputs):
        trouble[stage].reached("loss")
        return loss(outputs)

    batches = [Microbatch((part,), losses) for part in DATA.tensor_split(5)]
    pipeline.run(batches)
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for at in (1, 3, 5):
        trouble[stage].arm(error, where, at)
        with pytest.raises(type(error)) as caught:
            pipeline.run(batches)
        assert caught.value is error
        assert "self.reached" in "".join(traceback.format_exception(error)) or where == "loss"
        trouble[stage].arm(None, "", 0)
        model.zero_grad()
        pipeline.run(batches)
        same({name: parameter.grad for name, parameter in model.named_parameters()}, expected)


def test_the_first_failure_is_the_one_that_is_told():
    """The second stage fails because of nothing but the first; and what it would have waited for does not come."""
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("the reason")

    pipeline = piped(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), 4)
    pipeline._stages[0].part.links.append(Fails())
    with pytest.raises(ValueError, match="the reason"):
        pipeline.run([Microbatch((part,), loss) for part in DATA.tensor_split(8)])


# Borders ---------------------------------------------------------------------------------------------------
def test_what_can_cross_a_border():
    from collections import OrderedDict, namedtuple
    from dataclasses import dataclass

    @dataclass
    class Pair:
        first: object
        second: object

    Named = namedtuple("Named", "a b")
    ones = torch.ones(2)
    value = (ones, [ones, None], {"k": Named(ones, 3)}, OrderedDict(a=ones), Pair(ones, "text"), torch.Size([2, 3]), 1.5)
    doubled = mapped(value, lambda tensor: tensor * 2)
    assert len(tensors(value)) == 5 and all(torch.equal(each, ones * 2) for each in tensors(doubled))
    assert [type(each) for each in doubled] == [type(each) for each in value]
    assert doubled[2]["k"].b == 3 and doubled[4].second == "text" and doubled[5] == torch.Size([2, 3])
    with pytest.raises(UserCodeError, match="a object would have to cross"):
        crossing((ones, object()))


def test_buckets_can_be_started_when_a_stage_has_its_last_backward_pass_before_it():
    """Each stage says so once; the last stage's gradients are complete while the first has its last pass before it."""
    happened, model = [], made("plain")
    for number in (0, 6):
        model[number].weight.register_post_accumulate_grad_hook(lambda _, number=number: happened.append(number))
    piped(model, 2).run([Microbatch((part,), loss) for part in DATA.tensor_split(3)],
                        on_last=lambda stage: happened.append(f"last of {stage}"), on_done=lambda: happened.append("done"))
    assert happened.count("last of 0") == happened.count("last of 1") == 1 and happened.count("done") == 3
    assert happened[:happened.index("last of 1")].count(6) == 2
    last = happened.index("last of 0")
    assert happened[:last].count(0) == 2 and happened[:last].count(6) == 3


# Lanes ---------------------------------------------------------------------------------------------------
class Recorded:
    """Stands in for a GPU's stream and for its event."""

    def __init__(self, broken=False):
        self.calls, self.broken = [], broken

    def wait_stream(self, other):
        self.calls.append("wait for the weights")

    def synchronize(self):
        self.calls.append("all is done")
        if self.broken:
            raise RuntimeError("an illegal memory access")


def test_a_stage_on_the_processor_waits_for_what_a_gpu_hands_it():
    """Its own copy would go by another stream, and take what is not there yet."""
    event = Recorded()
    Lane(torch.device("cpu")).take(torch.ones(2), event)
    assert event.calls == ["all is done"]


@pytest.mark.parametrize("broken", [False, True])
def test_a_stage_on_a_gpu_that_fails_leaves_nothing_running(broken, monkeypatch):
    """Else it would still write into statistics that are being put back. Its own error is the one that counts."""
    stream = Recorded(broken)
    for name, stand_in in {"Stream": lambda device: stream, "default_stream": lambda device: None,
                           "device": nullcontext, "stream": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    with pytest.raises(RoundBroken, match="a peer is gone"), StreamLane(torch.device("cuda", 0)).entered():
        raise RoundBroken("a peer is gone")
    assert stream.calls == ["wait for the weights", "all is done"]
