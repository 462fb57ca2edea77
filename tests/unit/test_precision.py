"""Mixed precision on the CPU: what computes in which type, and steps that overflow are left out by all ranks alike."""

from __future__ import annotations

import copy
import json
import math
from functools import cache

import pytest
import torch
from torch import nn

from hvtrain.engine.world import SoloWorld
from hvtrain.errors import Diverged
from tests.support.small import SAMPLES, Rank, Small
from tests.support.threads import together

FP16 = {"train": {"precision": "fp16", "ema": 0.5, "loss_scale": 1024}}


@cache
def half_works() -> bool:
    """Whether this build of PyTorch can compute forward and backward passes in float16 on the CPU."""
    try:
        layer = nn.Linear(4, 4)
        with torch.autocast("cpu", dtype=torch.float16):
            outputs = layer(torch.ones(2, 4))
        outputs.float().sum().backward()
        return outputs.dtype == torch.float16 and layer.weight.grad is not None
    except RuntimeError:
        return False


half = pytest.mark.skipif(not half_works(), reason="this build of PyTorch has no float16 on the CPU")


@pytest.mark.parametrize("precision, dtype", [
    ("fp32", torch.float32), ("bf16", torch.bfloat16), pytest.param("fp16", torch.float16, marks=half)])
def test_it_computes_in_one_type_and_keeps_weights_in_float32(precision, dtype):
    rank = Rank(SoloWorld(), train={"precision": precision, "ema": 0.9})
    seen = []
    rank.adapter.model[3].register_forward_hook(lambda layer, inputs, outputs: seen.append(outputs.dtype))
    losses = [reduced.loss for reduced in rank.train(60)]
    assert set(seen) == {dtype}
    assert losses[-1] < losses[0] / 3, (losses[0], losses[-1])
    states = rank.adapter.optimizer.state.values()
    tensors = [*rank.adapter.model.parameters(), *(p.grad for p in rank.adapter.model.parameters()),
               *(value for state in states for value in state.values()), *rank.adapter._averages.tensors.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    seen.clear()
    metrics = rank.adapter.evaluate([((rank.task.points, rank.task.wanted), SAMPLES)], ema=False)
    assert set(seen) == {dtype} and metrics["loss"] < losses[0] / 3


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=half)])
def test_the_gradients_are_those_of_the_loss_whatever_it_was_scaled_by(precision):
    scale = {"loss_scale": 1024} if precision == "fp16" else {}
    exact, rank = Rank(SoloWorld()), Rank(SoloWorld(), train={"precision": precision, **scale})
    exact.gradients(), rank.gradients()
    factor = 2.0**10 if precision == "fp16" else 1.0
    mine, wanted = (torch.cat([p.grad.flatten() for p in r.adapter.model.parameters()]) for r in (rank, exact))
    assert (mine / factor - wanted).norm() < {"bf16": 2e-2, "fp16": 4e-3}[precision] * wanted.norm()


@half
def test_a_power_of_two_more_or_less_changes_no_weight():
    """Nothing overflows and nothing vanishes here; then scaling and dividing are exact, with clipping too."""
    for clip in (None, 0.1):
        train = {"precision": "fp16", **({} if clip is None else {"grad_clip": clip})}
        ranks = [Rank(SoloWorld(), train={**train, "loss_scale": scale}) for scale in (2.0**10, 2.0**13)]
        for rank in ranks:
            rank.train(5)
        one, other = ({name: digest for name, digest in rank.state().items() if name != "scalars"} for rank in ranks)
        assert one == other
        if clip is not None:
            norms = [rank.metrics["grad_norm"] for rank in ranks]
            assert norms[0] == norms[1] and norms[0] > clip


def everything(rank):
    """What a step that is left out must not touch."""
    return {name: digest for name, digest in rank.state().items() if name != "scalars"}


@half
@pytest.mark.parametrize("codec", ["none", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("spoil", [1e30, math.inf, math.nan])
def test_an_overflow_on_one_rank_makes_all_leave_the_step_out(codec, spoil):
    """The loss may be fine, infinite or no number; what counts is what all have reduced."""
    def work(world):
        comm = {"codec": codec, "bucket_mb": 0.001, "first_bucket_mb": 0.001}
        rank = Rank(world, tasks[world.rank], **FP16, comm=comm)
        good = rank.train(3)
        before, rates = everything(rank), rank.metrics["lr"]
        tracked = rank.adapter.model[1].num_batches_tracked.item()
        bad, = rank.train(1)
        assert everything(rank) == before
        assert (rank.metrics["skipped"], rank.metrics["loss_scale"], rank.metrics["lr"]) == (1.0, 2.0**10, rates)
        assert rank.adapter.model[1].num_batches_tracked.item() == tracked == 3
        after = rank.train(2)
        assert rank.metrics["skipped"] == 0.0 and rank.metrics["loss_scale"] == 2.0**9
        assert everything(rank) != before and rank.adapter.model[1].num_batches_tracked.item() == 5
        assert [reduced.overflow for reduced in (*good, bad, *after)] == [False] * 3 + [True] + [False] * 2
        return rank.state(), [reduced.loss for reduced in (*good, *after)], bad.flags

    torch.manual_seed(0)
    tasks = [Small({3: spoil}), Small({3: spoil})]
    common = tasks[0].model()
    for task in tasks:
        task.model = lambda: copy.deepcopy(common)
    first, second = together(work)
    assert first == second


@half
def test_a_loss_that_is_not_finite_is_an_overflow_even_if_its_gradients_are():
    rank = Rank(SoloWorld(), Small(loss=lambda outputs, batch: outputs.float().mean(1) + math.inf), **FP16)
    before = everything(rank)
    reduced, = rank.train(1)
    assert reduced.overflow and rank.adapter._gradients.finite() and everything(rank) == before


@half
def test_a_large_scale_comes_down_by_itself():
    rank = Rank(SoloWorld(), train={"precision": "fp16", "loss_scale": 2.0**40})
    skipped = []
    for _ in range(60):
        rank.train(1)
        skipped.append(rank.metrics["skipped"])
    count = int(sum(skipped))
    assert 10 < count < 40 and skipped == [1.0] * count + [0.0] * (60 - count)
    assert rank.metrics["loss_scale"] == 2.0 ** (40 - count)


@half
def test_a_gradient_that_is_never_finite_ends_the_training_after_a_while():
    task = Small({step: math.nan for step in range(100)})
    rank = Rank(SoloWorld(), task, train={"precision": "fp16", "loss_scale": 4.0})
    before = None
    with pytest.raises(Diverged, match="however small the loss scale.*Nothing of this step.*train.precision=bf16"):
        for _ in range(100):
            before = everything(rank)
            rank.train(1)
    assert rank.step == 17  # from 4 to below 2^-14
    fresh = Rank(SoloWorld(), Small(), train={"precision": "fp16"})
    assert before == everything(fresh), "no step was taken"


@half
def test_the_scale_and_its_patience_come_back_with_the_state():
    task = {3: math.inf}
    whole = Rank(SoloWorld(), Small(task), **FP16)
    torn, other = Rank(SoloWorld(), Small(task), **FP16), Rank(SoloWorld(), Small(task), **FP16)
    whole.train(12)
    torn.train(7)
    torn.pass_on(other)
    assert json.loads(other.state()["scalars"])["loss_scale"] == {"value": 2.0**9, "good": 3}
    other.train(5)
    assert other.state() == whole.state() and other.metrics == whole.metrics


@half
def test_the_scale_is_part_of_what_a_replacement_gets():
    def work(world):
        rank = Rank(world, tasks[world.rank], **FP16)
        rank.task.rank = 1  # its losses are those that overflow
        if world.rank == 0:
            rank.adapter.join(SoloWorld())
            rank.train(5)
            rank.adapter.join(world)
        received = rank.adapter.share_state(0)
        rank.step = 5
        rank.train(3)
        return received, rank.state()

    tasks = [Small({1: math.inf, 2: math.inf}), Small()]
    (none, first), (some, second) = together(work)
    assert none == 0 < some and first == second
    assert json.loads(first["scalars"])["loss_scale"] == {"value": 2.0**8, "good": 5}


@half
def test_a_checkpoint_of_another_precision_is_taken_and_starts_the_scale_afresh():
    plain, scaled = Rank(SoloWorld()), Rank(SoloWorld(), train={"precision": "fp16", "loss_scale": 1024})
    plain.train(2)
    plain.pass_on(scaled)
    assert json.loads(scaled.state()["scalars"])["loss_scale"] == {"value": 1024.0, "good": 0}
    scaled.train(1)
    scaled.pass_on(plain)
    plain.train(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("fp16", marks=half)])
def test_a_scalar_loss_is_counted_in_full_and_once(precision):
    """It was multiplied by the number of samples as it came: 12 * 8,256 has too many bits for bfloat16, and is too
    large for float16. And evaluations multiplied it twice."""
    rank = Rank(SoloWorld(), Small(loss=lambda outputs, batch: (outputs * 0 + 8256).mean()),
                train={"precision": precision, **({"loss_scale": 1} if precision == "fp16" else {})})
    rank.adapter.model[5].register_forward_hook(lambda layer, inputs, outputs: seen.append(outputs.dtype))
    seen = []
    reduced = rank.gradients()
    assert seen == [{"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert reduced.loss == 8256.0 and not reduced.overflow
    metrics = rank.adapter.evaluate([((rank.task.points, rank.task.wanted), SAMPLES)], ema=False)
    assert metrics["loss"] == 8256.0


def test_precision_is_not_asked_of_the_world():
    """Every rank leaves a step out by what it has reduced: no operation beside those of the gradients."""
    def work(world):
        rank = Rank(world, tasks[world.rank], train={"precision": "bf16"})
        rank.train(2)
        return sorted(world.sums)

    tasks = [Small(), Small()]
    first, second = together(work)
    assert first == second and {name for name, _ in first} == {"grad.0"}
