"""Gradients in flat buckets equal those of plain autograd, alone and over two ranks; statistics are averaged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hvtrain.adapters.torch.gradients import FlatGradients
from hvtrain.adapters.torch.statistics import Statistics
from hvtrain.comm.codecs import EngineCodec
from hvtrain.engine.world import SoloWorld
from hvtrain.errors import RoundBroken, UserCodeError
from tests.support.threads import together


class Reducer:
    """A model with its buckets; ``step`` does what the adapter does with per-sample losses."""

    def __init__(self, model, world=None, bucket_bytes=256, first_bytes=64, patterns=(), codec="none"):
        self.model, self.world = model, world or SoloWorld()
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.statistics = Statistics(model, patterns)
        self.gradients = FlatGradients(self.trainable, self.statistics, bucket_bytes=bucket_bytes,
                                       first_bytes=first_bytes, codec=EngineCodec(codec))
        self.gradients.use(self.world)

    def step(self, batches, total, loss=lambda out: out.float().pow(2).flatten(1).sum(1), flags=(0.0,)):
        self.gradients.begin()
        self.statistics.keep()
        summed = 0.0
        for number, batch in enumerate(batches):
            value = loss(self.model(batch)).sum()
            summed += value.item()
            if number == len(batches) - 1:
                self.gradients.last()
            (value / total).backward()
        return self.gradients.finish(summed, flags, sum(map(len, batches)) / total)

    def grads(self):
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def plain(model, data, loss=lambda out: out.float().pow(2).flatten(1).sum(1)):
    """Gradients of the mean loss by autograd alone; zeros where there is no path."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    value = loss(model(data)).sum() / len(data)
    found = torch.autograd.grad(value, trainable, allow_unused=True)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: g if g is not None else torch.zeros_like(p) for p, g in zip(trainable, found)}


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


class Partly(nn.Module):
    """``odd`` has a path to the loss only where the first input is positive; ``never`` has none."""

    def __init__(self):
        super().__init__()
        self.used, self.odd, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.used(x)
        return y + self.odd(x) if x[0, 0] > 0 else y


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x)).tanh())


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high, self.wide = nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4), nn.Linear(4, 2).double()

    def forward(self, x):
        return self.wide(self.high(self.low(x.bfloat16()).float()).double())


def frozen():
    model = mlp()
    model[0].requires_grad_(False)
    return model


MODELS = {"mlp": mlp, "unused": Partly, "shared": Tied, "frozen": frozen, "mixed": Mixed}
DATA = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def check(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize("buckets", [(1, 1), (256, 64), (1 << 20, 1 << 20)])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_equal_to_plain_autograd(model, buckets):
    torch.manual_seed(0)
    reducer = Reducer(model(), bucket_bytes=buckets[0], first_bytes=buckets[1])
    for _ in range(3):  # the buckets are used again
        loss, flags, waited, hidden = reducer.step([DATA], 6, flags=(1.0, 2.0))
        check(reducer.grads(), plain(reducer.model, DATA))
    assert flags[:2] == (1.0, 2.0) and waited >= 0 and hidden == 0
    assert loss == pytest.approx(reducer.model(DATA).float().pow(2).sum().item(), rel=1e-5)


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (2, 2, 2), (1,) * 6])
@pytest.mark.parametrize("model", ["mlp", "shared", "frozen"])
def test_micro_batches_change_nothing(model, sizes):
    torch.manual_seed(0)
    reducer = Reducer(MODELS[model]())
    reducer.step(list(DATA.split(list(sizes))), 6)
    check(reducer.grads(), plain(reducer.model, DATA))


def test_a_parameter_used_in_one_micro_batch_only():
    data = torch.tensor([[1.0, 2, 3, 4], [-1.0, 2, 3, 4]])
    for batches in ([data[:1], data[1:]], [data[1:], data[:1]]):
        torch.manual_seed(0)
        reducer = Reducer(Partly())
        reducer.step(batches, 2)
        one, two = plain(reducer.model, data[:1]), plain(reducer.model, data[1:])
        check(reducer.grads(), {name: (one[name] + two[name]) / 2 for name in one})


def test_gradients_are_views_of_the_buckets():
    reducer = Reducer(mlp())
    reducer.step([DATA], 6)
    before = [p.grad.data_ptr() for p in reducer.trainable]
    reducer.step([DATA], 6)
    assert [p.grad.data_ptr() for p in reducer.trainable] == before


@pytest.mark.parametrize("split", [(3, 3), (5, 1), (6, 0)])
@pytest.mark.parametrize("model", ["mlp", "shared", "frozen", "mixed"])
def test_two_ranks_have_the_gradient_of_the_whole_batch(model, split):
    expected = None

    def work(world):
        reducer = Reducer(models[world.rank], world)
        part = DATA.split(list(split))[world.rank]
        loss, flags, *_ = reducer.step([part] if len(part) else [], 6, flags=(float(world.rank), 1.0))
        return reducer.grads(), loss, flags[:2]

    torch.manual_seed(0)
    first = MODELS[model]()
    models = [first, MODELS[model]()]
    models[1].load_state_dict(first.state_dict())
    expected = plain(first, DATA)
    (grads, loss, flags), other = together(work)
    assert (loss, flags) == other[1:] and flags == (1.0, 2.0)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if model == "mixed" else {"rtol": 1e-5, "atol": 1e-6}
    for name in expected:
        assert torch.equal(grads[name], other[0][name])
        torch.testing.assert_close(grads[name], expected[name], **tolerance)


def test_all_ranks_reduce_the_same_names_whatever_they_were_given():
    def work(world):
        torch.manual_seed(0)
        reducer = Reducer(Partly(), world)
        reducer.step([DATA.abs()] if world.rank == 0 else [], 6)
        return sorted(world.sums)

    first, second = together(work)
    assert first == second and len(first) == len(set(first))


def test_norm_and_scale_leave_the_tail_alone():
    reducer = Reducer(mlp())
    reducer.step([DATA], 6, flags=(3.0,))
    expected = nn.utils.get_total_norm(p.grad for p in reducer.trainable)
    torch.testing.assert_close(reducer.gradients.norm(), expected)
    reducer.gradients.scale(torch.tensor(0.5))
    torch.testing.assert_close(reducer.gradients.norm(), expected / 2)
    assert reducer.gradients._tail[1].item() == 3.0


def test_norm_over_several_types():
    torch.manual_seed(0)
    reducer = Reducer(Mixed())
    reducer.step([DATA], 6)
    expected = torch.stack([p.grad.double().norm() for p in reducer.trainable]).norm()
    assert reducer.gradients.norm().item() == pytest.approx(expected.item(), rel=1e-2)


def test_a_loss_keeps_its_precision_where_the_last_bucket_is_half():
    torch.manual_seed(0)
    model = nn.Linear(4, 4).bfloat16()
    loss, *_ = Reducer(model).step([DATA.bfloat16()], 6, flags=(1.0,), loss=lambda out: out[:, 0].float() * 0 + 1000.25)
    assert loss == 6001.5


def test_a_world_that_breaks_in_a_hook_raises_through_backward_and_the_next_step_is_right():
    class Breaking(SoloWorld):
        broken = True

        def sum_async(self, tensor, name, codec="none"):
            if self.broken:
                raise RoundBroken("gone")

    torch.manual_seed(0)
    reducer = Reducer(mlp(), Breaking())
    with pytest.raises(RoundBroken):
        reducer.step([DATA], 6)
    reducer.world.broken = False
    reducer.step([DATA], 6)
    check(reducer.grads(), plain(reducer.model, DATA))


def test_channels_last_weights_get_their_gradient():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    data = torch.randn(2, 3, 5, 5)
    reducer = Reducer(model)
    reducer.step([data], 2)
    check(reducer.grads(), plain(model, data))


class Recomputed(nn.Module):
    """One layer used in two re-entrant checkpoints: its gradient arrives twice in one backward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        x = self.first(x)
        for _ in range(2):
            x = checkpoint(self.shared, x, use_reentrant=True)
        return x


def test_a_gradient_that_arrives_twice_is_refused_instead_of_being_reduced_half_done():
    torch.manual_seed(0)
    reducer = Reducer(Recomputed(), bucket_bytes=1, first_bytes=1)
    with pytest.raises(UserCodeError, match="use_reentrant=False"):
        reducer.step([DATA], 6)


def test_sparse_gradients_are_refused_with_a_reason():
    reducer = Reducer(nn.Embedding(5, 2, sparse=True))
    with pytest.raises(UserCodeError, match="sparse"):
        reducer.step([torch.tensor([[1], [2]])], 2)


# Codecs --------------------------------------------------------------------------------------------------
LOSSY = {"fp16": 2**-9, "bf16": 2**-6, "int8": 3 / 127}
"""The error of a sum over two ranks, as a part of the bucket's largest number."""


def two_steps(codec="none", buckets=(256, 64)):
    """What two ranks with unequal shares end two steps with: gradients, loss, flags, statistics, names of the sums."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    models = [first, copy.deepcopy(first)]

    def work(world):
        reducer = Reducer(models[world.rank], world, *buckets, codec=codec)
        part = DATA.split([4, 2])[world.rank]
        for _ in range(2):  # the buckets, and the tail beside them, are used again
            world.sums.clear()
            loss, flags, *_ = reducer.step([part], 6, flags=(float(world.rank), 1.0, 1e-30))
            reducer.gradients.adopt_statistics()
        return reducer.grads(), loss, flags, stats(reducer.model), world.sums

    return together(work)


@pytest.mark.parametrize("buckets", [(1, 1), (256, 64), (1 << 20, 1 << 20)])
@pytest.mark.parametrize("codec", LOSSY)
def test_a_lossy_codec_carries_gradients_and_nothing_else(codec, buckets):
    """The loss, the flags and the statistics arrive as they are: they go by themselves then."""
    (grads, loss, flags, found, sums), twin = two_steps(codec, buckets)
    exact = two_steps()[0]
    assert sums == twin[4] and sums[-1][1] == "none" and {way for _, way in sums[:-1]} == {codec}
    assert (loss, flags) == (twin[1], twin[2]) == (exact[1], exact[2])
    assert flags == (1.0, 2.0, pytest.approx(2e-30), 0.0)
    for mine, theirs, expected in zip(found, twin[3], exact[3]):
        assert torch.equal(mine, theirs) and torch.equal(mine, expected)
    most = max(grad.abs().max() for grad in exact[0].values())
    for name, expected in exact[0].items():
        assert torch.equal(grads[name], twin[0][name])
        assert (grads[name] - expected).abs().max() <= LOSSY[codec] * most, name
    assert any(not torch.equal(grads[name], expected) for name, expected in exact[0].items())


@pytest.mark.parametrize("codec", ["none", *LOSSY])
def test_what_is_not_finite_is_found_on_all_ranks_and_the_tail_does_not_count(codec):
    def work(world):
        reducer = Reducer(models[world.rank], world, codec=codec)
        found = []
        for scale in (1.0, float("inf"), float("nan"), 1.0):
            data = DATA[:3] * (scale if world.rank == 1 else 1.0)
            reducer.step([data], 6, loss=lambda out: out.flatten(1).sum(1), flags=(float("nan"),))
            found.append(reducer.gradients.finite())
        return found

    models = [mlp(), mlp()]
    assert together(work) == [[True, False, False, True]] * 2


# Statistics ----------------------------------------------------------------------------------------------
def norm_model(momentum=0.1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=momentum)).train()


def stats(model):
    return [buffer.clone() for buffer in model.buffers()]


def test_alone_with_one_batch_the_statistics_are_those_of_torch():
    model, twin = norm_model(), norm_model()
    reducer = Reducer(model)
    reducer.step([DATA], 6)
    reducer.gradients.adopt_statistics()
    twin(DATA)
    for got, expected in zip(stats(model), stats(twin)):
        torch.testing.assert_close(got, expected)
    assert model[1].num_batches_tracked == 1


def test_two_ranks_average_their_statistics_by_their_share_of_the_batch():
    def work(world):
        reducer = Reducer(models[world.rank], world)
        part = DATA.split([4, 2])[world.rank]
        reducer.step([part], 6)
        reducer.gradients.adopt_statistics()
        return stats(reducer.model)

    models, alone = [norm_model(), norm_model()], norm_model()
    with torch.no_grad():
        hidden = [alone[0](part) for part in DATA.split([4, 2])]
    weights = [4 / 6, 2 / 6]
    mean = sum(w * 0.1 * h.mean(0) for w, h in zip(weights, hidden))
    var = sum(w * (0.9 + 0.1 * h.var(0)) for w, h in zip(weights, hidden))
    first, second = together(work)
    for a, b in zip(first, second):
        assert torch.equal(a, b)
    torch.testing.assert_close(first[0], mean)
    torch.testing.assert_close(first[1], var)
    assert first[2] == 1


def test_a_rank_without_samples_takes_the_others_statistics():
    def work(world):
        reducer = Reducer(models[world.rank], world)
        reducer.step([DATA] if world.rank == 0 else [], 6)
        reducer.gradients.adopt_statistics()
        return stats(reducer.model)

    models, alone = [norm_model(), norm_model()], norm_model()
    alone(DATA)
    first, second = together(work)
    for a, b, c in zip(first, second, stats(alone)):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)


def test_put_back_undoes_the_forward_passes():
    model = norm_model()
    before = stats(model)
    statistics = Statistics(model, ())
    statistics.keep()
    model(DATA)
    statistics.put_back()
    assert all(torch.equal(a, b) for a, b in zip(stats(model), before))


def test_statistics_may_lie_on_several_devices():
    """As those of stages do; their sums come in one piece, on the device of the first."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4).to("meta"))
    statistics = Statistics(model, ())
    statistics.keep()
    statistics.adopt(torch.ones(statistics.elements))
    assert model[0].running_mean.tolist() == [1.0] * 4 and model[1].running_mean.device.type == "meta"


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("ids", torch.arange(3))

    def forward(self, x):
        self.seen += 1
        return self.layer(x)


def test_a_buffer_that_forward_changes_without_being_averaged_is_refused():
    reducer = Reducer(Counting())
    reducer.statistics.check_others()
    reducer.step([DATA], 6)
    with pytest.raises(UserCodeError, match="'seen'.*averaged_buffers"):
        reducer.statistics.check_others()


def test_a_counter_that_cannot_be_averaged_is_refused_with_another_remedy():
    model = Counting()
    statistics = Statistics(model, ["ids"])
    model.ids += 1
    with pytest.raises(UserCodeError, match="'ids'.*floating-point"):
        statistics.check_others()


def test_further_buffers_are_averaged_and_constants_stay_what_they_are():
    reducer = Reducer(Counting(), patterns=["*"])
    reducer.step([DATA], 6)
    reducer.statistics.check_others()
    reducer.gradients.adopt_statistics()
    assert reducer.model.seen.tolist() == [1, 1]
    assert reducer.model.ids.tolist() == [0, 1, 2]
