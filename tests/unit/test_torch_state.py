"""What is exported and taken back is the same to the bit, and what does not fit is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from hvtrain.adapters.torch import state
from hvtrain.adapters.torch.averages import Averages
from hvtrain.errors import CheckpointDamaged

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1), "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True), "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1), "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
}


def net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).to(dtype)


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        data = torch.randn(8, 3, generator=generator).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(data).float().pow(2).mean().backward()
        optimizer.step()


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_to_the_bit(make, dtype):
    model = net(dtype)
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    blobs, (tensors, values) = state.export_module(model), state.export_optimizer(model, optimizer)
    values = json.loads(json.dumps(values))
    other = net(dtype, seed=9)
    other_optimizer = make(other.parameters())
    state.restore_module(other, blobs)
    state.restore_optimizer(other, other_optimizer, tensors, values)
    same(model.state_dict(), other.state_dict())
    assert state.export_optimizer(other, other_optimizer) == (tensors, values)
    train(model, optimizer, 2, seed=1)
    train(other, other_optimizer, 2, seed=1)
    same(model.state_dict(), other.state_dict())


def test_an_export_is_a_copy():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 1)
    blobs, (tensors, _) = state.export_module(model), state.export_optimizer(model, optimizer)
    before = {name: bytes(blob.data) for name, blob in {**blobs, **tensors}.items()}
    train(model, optimizer, 1, seed=5)
    assert before == {name: bytes(blob.data) for name, blob in {**blobs, **tensors}.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8,
                                   torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 3), (2, 3)])
def test_any_tensor(dtype, shape):
    tensor = torch.randint(0, 2, shape).to(dtype)
    back = state.from_blob(state.to_blob(tensor))
    assert back.dtype == dtype and back.shape == tensor.shape and torch.equal(back, tensor)


def test_special_values_and_strides():
    tensor = torch.tensor([[float("nan"), float("inf")], [-0.0, 1e-45]]).t()
    back = state.from_blob(state.to_blob(tensor))
    assert back.view(torch.int32).tolist() == tensor.contiguous().view(torch.int32).tolist()


def test_a_type_that_checkpoints_lack():
    with pytest.raises(TypeError, match="complex64"):
        state.to_blob(torch.zeros(1, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averages_come_back(dtype):
    model = net(dtype)
    averages = Averages(model, 0.5)
    train(model, torch.optim.SGD(model.parameters(), lr=0.5), 2)
    averages.update(0)
    blobs = {name: state.to_blob(tensor) for name, tensor in averages.tensors.items()}
    other = Averages(net(dtype, seed=4), 0.5)
    state.restore_tensors(other.tensors, blobs, "average")
    same(averages.tensors, other.tensors)


def test_averages_in_place_and_out_again():
    model = net()
    averages = Averages(model, 0.5)
    train(model, torch.optim.SGD(model.parameters(), lr=0.5), 1)
    weights, mean = copy.deepcopy(model.state_dict()), {n: t.clone() for n, t in averages.tensors.items()}
    with pytest.raises(ZeroDivisionError), averages.in_place():
        same({n: p.detach() for n, p in model.named_parameters()}, mean)
        raise ZeroDivisionError
    same(model.state_dict(), weights)
    same(averages.tensors, mean)


def test_averages_follow_the_weights():
    model = nn.Linear(1, 1)
    averages = Averages(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1)
    start = averages.tensors["weight"].clone()
    averages.update(10 ** 6)
    torch.testing.assert_close(averages.tensors["weight"], start + 0.1)


def test_another_model_is_refused_with_names_and_what_to_do():
    blobs = state.export_module(net())
    other = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    with pytest.raises(CheckpointDamaged, match="'1.num_batches_tracked'.*task.args.*resume=never"):
        state.restore_module(other, blobs)


def test_another_shape_is_refused_with_both_shapes():
    blobs = state.export_module(nn.Linear(3, 5))
    with pytest.raises(CheckpointDamaged, match=r"'weight' has shape \(5, 3\), the model's \(5, 4\)"):
        state.restore_module(nn.Linear(4, 5), blobs)


def test_state_of_an_unknown_parameter_is_refused():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    tensors, values = state.export_optimizer(model, optimizer)
    small = nn.Linear(3, 5)
    with pytest.raises(CheckpointDamaged, match="'0.weight'"):
        state.restore_optimizer(small, torch.optim.Adam(small.parameters()), tensors, values)


def test_state_of_parameters_that_are_frozen_now_is_left_out():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    tensors, values = state.export_optimizer(model, optimizer)
    some = torch.optim.Adam(model[2].parameters())
    state.restore_optimizer(model, some, tensors, values)
    assert set(state.export_optimizer(model, some)[0]) == {p for p in tensors if p.startswith("2.")}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_parameters_that_were_frozen_then_start_afresh(make):
    model = net()
    before = make(model[2].parameters())
    train(model, before, 1)
    tensors, values = state.export_optimizer(model, before)
    after = make(model.parameters())
    state.restore_optimizer(model, after, tensors, values)
    train(model, after, 1)


def test_shared_parameters_are_stored_under_both_names_and_come_back_shared():
    def tied():
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    model, other = tied(), tied()
    optimizer, other_optimizer = (torch.optim.Adam(m.parameters()) for m in (model, other))
    train(model, optimizer, 1)
    state.restore_module(other, state.export_module(model))
    state.restore_optimizer(other, other_optimizer, *state.export_optimizer(model, optimizer))
    same(model.state_dict(), other.state_dict())
    assert other[1].weight is other[0].weight
