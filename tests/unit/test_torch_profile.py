"""What a measurement of a model says, and that it leaves nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hvtrain.errors import UserCodeError
from hvtrain.hybrid.torch import walk
from hvtrain.hybrid.torch.chain import chain
from hvtrain.hybrid.torch.profile import measure
from hvtrain.task import Task
from tests.unit.test_torch_tracing import Language


class Classes(Task):
    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch[1], reduction="none")


def batch(count, width=32):
    return torch.randn(count, width), torch.randint(4, (count,))


def test_bytes_are_those_of_parameters_activations_and_borders():
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    (costs,) = measure(model, Classes(), batch(8), 8, "cpu")
    assert [layer.name for layer in costs.layers] == ["0", "1", "2"] and (costs.batch, costs.device) == (8, "cpu")
    assert [layer.parameters for layer in costs.layers] == [4 * (32 * 64 + 64), 0, 4 * (64 * 4 + 4)]
    assert [layer.output for layer in costs.layers] == [8 * 64 * 4, 8 * 64 * 4, 4]
    assert costs.input == 8 * 32 * 4
    first, relu, last = (layer.saved for layer in costs.layers)
    assert first == 8 * 32 * 4  # the input
    assert relu == 8 * 64 * 4  # what it gives, which the next layer keeps too
    assert last >= 8 * 4 * 4  # of the loss


def test_seconds_follow_the_work_and_the_number_of_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 4))
    (costs,) = measure(model, Classes(), batch(256, 256), 256, "cpu")
    seconds = [layer.forward + layer.backward for layer in costs.layers]
    assert all(layer.forward > 0 and layer.backward > 0 for layer in costs.layers) and costs.overhead >= 0
    assert max(seconds) == seconds[2]  # 16 times the work of the first


def test_it_leaves_nothing_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(16, 4))
    model.eval()
    model[0].weight.grad = torch.ones(16, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    inputs, targets = batch(8)
    kept = inputs.clone()
    random = torch.get_rng_state()
    (costs,) = measure(model, Classes(), (inputs, targets), 8, "cpu", optimizer)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values()))
    assert torch.equal(random, torch.get_rng_state()) and torch.equal(inputs, kept)
    assert not any(module.training for module in model.modules()) and not optimizer.state
    assert torch.equal(model[0].weight.grad, torch.ones(16, 32)) and model[4].weight.grad is None
    assert costs.update > 0 and 2 <= costs.state < 2.1


def test_state_that_the_optimizer_has_is_kept():
    model = nn.Sequential(nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(3, 32)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    (costs,) = measure(model, Classes(), batch(4), 4, "cpu", optimizer)
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"] and costs.state == 1
    assert all(torch.equal(before["state"][i]["momentum_buffer"], after["state"][i]["momentum_buffer"])
               for i in before["state"])


def test_numpy_batches_several_outputs_and_autocast():
    class Both(Task):
        def inputs(self, batch):
            return {"tokens": batch}

        def loss(self, outputs, batch):
            return F.cross_entropy(outputs.transpose(1, 2), batch, reduction="none").mean(1)

    model = Language()
    tokens = torch.randint(7, (4, 6)).numpy()
    (costs,) = measure(chain(model, {"tokens": torch.as_tensor(tokens)}), Both(), tokens, 4, "cpu",
                    context=lambda: torch.autocast("cpu", torch.bfloat16))
    assert sum(layer.parameters for layer in costs.layers) == sum(p.nbytes for p in model.parameters())
    assert all(layer.saved > 0 for layer in costs.layers)


def test_layers_without_gradients_cost_no_backward_and_one_sample_is_enough():
    model = nn.Sequential(nn.Linear(32, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    (costs,) = measure(model, Classes(), batch(1), 1, "cpu")
    assert costs.layers[0].saved == 0 and costs.batch == 1
    assert costs.layers[0].backward < costs.layers[2].backward


def test_a_wrong_loss_is_refused():
    class Wrong(Task):
        def loss(self, outputs, batch):
            return outputs

    with pytest.raises(UserCodeError, match="one loss per sample"):
        measure(nn.Sequential(nn.Linear(32, 4)), Wrong(), batch(4), 4, "cpu")


def test_a_model_that_cannot_be_cut_is_measured_as_one_layer_if_that_will_do():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Branching(32, 4)

        def forward(self, x):
            return self.inner(x) if x.sum() > -1e9 else x

    with pytest.raises(UserCodeError, match="Outer cannot be cut"):
        measure(Outer(), Classes(), batch(4), 4, "cpu")
    (costs,) = measure(Outer(), Classes(), batch(4), 4, "cpu", uncut=True)
    assert [layer.name for layer in costs.layers] == ["Outer"]


def test_several_sizes_of_a_micro_batch():
    """Each is measured with its own samples; those that would not fit are left out."""
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    asked = []
    found = measure(model, Classes(), batch(8), 8, "cpu", sizes=(2, 4, 8), gate=lambda: asked.append(1))
    assert [costs.batch for costs in found] == [2, 4, 8] and len(asked) == 2
    assert [costs.layers[1].saved for costs in found] == [count * 64 * 4 for count in (2, 4, 8)]
    assert [costs.input for costs in found] == [count * 32 * 4 for count in (2, 4, 8)]
    each = sum(layer.saved + layer.output for layer in found[0].layers) + found[0].input
    small = measure(model, Classes(), batch(8), 8, "cpu", sizes=(2, 4, 8), room=2.5 * each)
    assert [costs.batch for costs in small] == [2, 4]
    assert [costs.batch for costs in measure(model, Classes(), batch(8), 8, "cpu", sizes=(4, 8), room=0)] == [4]


def test_what_would_take_very_long_is_left_out(monkeypatch):
    """Three passes of a large share of the batch may take minutes, and say nothing that a small one does not."""
    monkeypatch.setattr(walk, "LONGEST", 0.0)
    found = measure(nn.Sequential(nn.Linear(32, 4)), Classes(), batch(8), 8, "cpu", sizes=(4, 8))
    assert [costs.batch for costs in found] == [4]


def test_a_size_for_which_a_gpu_has_too_little_memory_is_left_out():
    """What a pass takes beside the activations that it keeps, a convolution's workspace for instance, is not known before:
    the measurement of the largest micro-batch ended with the GPU's error, and so did the plan."""

    class Workspace(nn.Linear):
        def forward(self, value):
            if len(value) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
            return super().forward(value)

    model = nn.Sequential(Workspace(32, 64), nn.ReLU(), nn.Linear(64, 4))
    found = measure(model, Classes(), batch(16), 16, "cpu", sizes=(2, 4, 8, 16))
    assert [costs.batch for costs in found] == [2, 4]
    with pytest.raises(torch.OutOfMemoryError):
        measure(model, Classes(), batch(16), 16, "cpu", sizes=(8, 16))
