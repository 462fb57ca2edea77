"""Which codec is used for which gradients, and that what a codec remembers is part of the training's state."""

from __future__ import annotations

import copy
import logging
import math
from types import SimpleNamespace

import pytest
import torch

from hvtrain.adapters.torch import codecs as choosing
from hvtrain.adapters.torch.codecs import CastCodec, choose
from hvtrain.comm.codecs import NAMES, EngineCodec
from hvtrain.engine.world import SoloWorld
from hvtrain.errors import RoundBroken, UsageError
from tests.support.feedback import Feedback
from tests.support.small import Rank, Small
from tests.support.threads import together


def parameter(dtype=torch.float32, device="cpu"):
    return SimpleNamespace(dtype=dtype, device=torch.device(device))


def test_on_the_cpu_the_engine_does_it(caplog):
    caplog.set_level(logging.INFO)
    for name in NAMES:
        codec = choose(name, [("w", parameter())])
        assert isinstance(codec, EngineCodec) and (codec.name, codec.lossy) == (name, name != "none")
    assert len(caplog.records) == 3 and "none" not in caplog.text


def test_on_a_gpu_fp16_is_left_to_nccl_and_that_is_said(caplog):
    caplog.set_level(logging.INFO)
    assert isinstance(choose("none", [("w", parameter(device="cuda"))]), EngineCodec)
    assert isinstance(choose("fp16", [("w", parameter()), ("v", parameter(device="cuda:1"))]), CastCodec)
    assert "NCCL" in caplog.text
    for name in ("bf16", "int8"):
        with pytest.raises(UsageError, match=f"comm.codec: {name} works with gradients on the CPU.*codec=fp16 or none"):
            choose(name, [("w", parameter(device="cuda"))])


@pytest.mark.parametrize("dtype, word", [
    (torch.float64, "float64"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")])
@pytest.mark.parametrize("name", NAMES[1:])
def test_other_types_are_refused_with_the_parameters_name_and_a_remedy(name, dtype, word):
    with pytest.raises(UsageError, match=f"comm.codec: {name}.*'layer.w' is {word}.*comm.codec=none") as caught:
        choose(name, [("fine", parameter()), ("layer.w", parameter(dtype))])
    assert "train.precision: bf16" in str(caught.value)


def test_without_a_codec_all_types_go_that_horovod_can_add_up():
    choose("none", [("a", parameter(torch.float64)), ("b", parameter(torch.float16)), ("c", parameter())])
    with pytest.raises(UsageError, match="'c' is bfloat16.*train.precision=bf16"):
        choose("none", [("a", parameter()), ("c", parameter(torch.bfloat16))])


def test_casting_sums_in_half_precision_and_keeps_what_is_too_large_visible():
    def work(world):
        codec, flat = CastCodec(), torch.empty(4)
        for _ in range(2):  # its buffer is used again
            flat.copy_(torch.tensor([1 + 2**-11 * world.rank, 40000.0, math.nan if world.rank else 1.0, 1e-9]))
            codec.finish(world, codec.start(world, flat, "g"))
        return flat.tolist()

    first, second = together(work)
    assert first[:2] == second[:2] == [2.0, math.inf] and math.isnan(first[2]) and first[3] == 0.0


def test_codecs_without_a_memory_have_no_state():
    for codec in (EngineCodec("int8"), CastCodec()):
        codec.commit()
        assert codec.export() == {}
        codec.restore({})


def test_noise_is_seeded_by_the_run_and_the_step_and_alike_on_all_ranks():
    def work(world):
        rank = Rank(world, tasks[world.rank], run={"seed": 5}, comm={"codec": "int8"})
        rank.train(2)
        rank.step = 1
        rank.gradients()  # broken off and done again
        return world.seeds

    tasks = [Small(), Small()]
    first, second = together(work)
    assert first == second and first[1] == first[2] != first[0]
    other = Rank(SoloWorld(), run={"seed": 6})
    seeds = []
    other.adapter._world.noise = seeds.append
    other.gradients()
    assert seeds[0] != first[0]


# A codec with a memory ---------------------------------------------------------------------------------------
@pytest.fixture
def feedback(monkeypatch):
    monkeypatch.setattr(choosing, "choose", lambda name, parameters: Feedback())


SMALL_BUCKETS = {"comm": {"bucket_mb": 0.002, "first_bucket_mb": 0.001}}


def ranks_together(work):
    """``work(rank)`` of two adapters with equal weights."""
    torch.manual_seed(0)
    tasks = [Small(), Small()]
    common = tasks[0].model()
    for task in tasks:
        task.model = lambda: copy.deepcopy(common)
    return together(lambda world: work(Rank(world, tasks[world.rank], **SMALL_BUCKETS)))


def remembered(rank):
    return {name: value for name, value in rank.state().items() if name.startswith("codec/")}


def test_all_ranks_remember_the_same_and_nothing_is_lost_over_the_steps(feedback):
    """What one sum leaves out comes with a later one: so the sum of all that arrived is off by what is remembered."""
    def work(rank):
        arrived = exact = 0.0
        for _ in range(6):
            rank.gradients()
            codec = rank.adapter._codec
            flats = [flat.double() for flat in rank.adapter._gradients._flats[:-1]]
            before = codec.errors
            arrived = [a + b for a, b in zip(arrived or [0.0] * len(flats), flats)]
            coming = [codec._coming[f"grad.{number}"].double() for number in range(len(flats))]
            given = [flat + new - before.get(f"grad.{n}", 0) for n, (flat, new) in enumerate(zip(flats, coming))]
            exact = [a + b for a, b in zip(exact or [0.0] * len(flats), given)]
            rank.adapter.apply(rank.step, 1.0)
            rank.step += 1
        for got, wanted, error in zip(arrived, exact, coming):
            assert torch.allclose(got + error, wanted, rtol=1e-6, atol=1e-9) and error.abs().max() > 0
        return rank.state()

    first, second = ranks_together(work)
    assert first == second and sum(name.startswith("codec/grad.") for name in first) >= 2


def test_what_it_remembers_goes_through_checkpoints(feedback):
    whole, torn, other = (Rank(SoloWorld(), **SMALL_BUCKETS) for _ in range(3))
    whole.train(8)
    torn.train(3)
    assert "codec" in torn.adapter.export()
    torn.pass_on(other)
    assert remembered(other) == remembered(torn)
    other.train(5)
    assert other.state() == whole.state()


def test_it_matters_that_it_does(feedback):
    whole, torn, other = (Rank(SoloWorld(), **SMALL_BUCKETS) for _ in range(3))
    whole.train(8)
    torn.train(3)
    groups = torn.adapter.export()
    del groups["codec"]  # as from a checkpoint of a run without this codec: it starts afresh
    other.adapter.restore(groups, torn.adapter.scalars())
    other.step = 3
    assert remembered(other) == {}
    other.train(5)
    assert other.state() != whole.state()


def test_a_run_without_that_codec_takes_its_checkpoint(feedback, monkeypatch):
    before = Rank(SoloWorld())
    before.train(2)
    monkeypatch.undo()
    after = Rank(SoloWorld())
    before.pass_on(after)
    after.train(1)
    assert remembered(before) and not remembered(after)


def test_what_it_remembers_reaches_a_rank_that_lacks_it(feedback):
    def work(rank):
        if rank.world.rank == 1:
            world, rank.world = rank.world, SoloWorld()
            rank.adapter.join(rank.world)
            rank.train(4)
            rank.world = world
            rank.adapter.join(world)
        rank.adapter.share_state(1)
        rank.step = 4
        before = rank.state()
        rank.train(2)
        return before, rank.state()

    first, second = ranks_together(work)
    assert first == second and any(name.startswith("codec/") for name in first[0])


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_step_that_is_broken_off_is_not_remembered(feedback, at):
    def work(rank):
        rank.train(2)
        before = rank.state()
        rank.world.breaks_at = len(rank.world.sums) + at
        with pytest.raises(RoundBroken):
            rank.gradients()
        rank.world.breaks_at = None
        assert rank.state() == before
        rank.train(3)
        return rank.state()

    def undisturbed(rank):
        rank.train(5)
        return rank.state()

    assert ranks_together(work) == ranks_together(undisturbed)


def test_a_step_that_is_reduced_but_never_applied_is_not_remembered(feedback):
    """As when another rank dies between the two, or half precision overflows."""
    rank, calm = Rank(SoloWorld(), **SMALL_BUCKETS), Rank(SoloWorld(), **SMALL_BUCKETS)
    rank.train(2), calm.train(5)
    before = rank.state()
    rank.gradients()
    rank.adapter._statistics.put_back()
    assert rank.state() == before
    rank.train(3)
    assert rank.state() == calm.state()


def test_a_step_that_overflows_is_not_remembered(feedback):
    try:
        rank = Rank(SoloWorld(), Small({2: math.inf}), train={"precision": "fp16", "loss_scale": 1024}, **SMALL_BUCKETS)
        rank.train(2)
    except RuntimeError as error:
        pytest.skip(f"this build of PyTorch has no float16 on the CPU: {error}")
    before = {name: digest for name, digest in rank.state().items() if name != "scalars"}
    rank.train(1)
    assert rank.metrics["skipped"] and remembered(rank)
    assert before == {name: digest for name, digest in rank.state().items() if name != "scalars"}
    rank.train(2)
    assert not rank.metrics["skipped"]
