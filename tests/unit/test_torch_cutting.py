"""Models are cut into links and parts that compute what the whole computes, with the model's own weights."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hvtrain.data import ArraySource
from hvtrain.errors import UsageError, UserCodeError
from hvtrain.hybrid.torch import example
from hvtrain.hybrid.torch.chain import chain, whole
from hvtrain.hybrid.torch.links import spread
from hvtrain.hybrid.torch.parts import cut
from hvtrain.task import Task


def results(model, run, inputs, parts=()):
    """Outputs, then gradients and buffers by name; those of aliases are added to their owners'."""
    torch.manual_seed(3)
    model.zero_grad()
    outputs = run(*inputs)
    total = sum((output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum()
                for output in spread(outputs) if output.is_floating_point())
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    names = {id(p): name for name, p in model.named_parameters()}
    for tie in (tie for part in parts for tie in part.ties):
        name = names[id(tie.owner)]
        gradients[name] = gradients.get(name, 0) + tie.alias.grad
        tie.alias.grad = None
    return spread(outputs), gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}


def one_after_another(parts):
    def run(*inputs):
        for part in parts:
            inputs = spread(part(*inputs))
        return inputs
    return run


def equal(model, parts, *inputs):
    """The parts compute what the model computes, in both modes."""
    for mode in (True, False):
        model.train(mode)
        before = copy.deepcopy(model.state_dict())
        expected = results(model, model, inputs)
        model.load_state_dict(before)
        for part in parts:
            part.train(mode)
        for tie in (tie for part in parts for tie in part.ties):
            tie.sync()
        came = results(model, one_after_another(parts), inputs, parts)
        torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-6)
        model.load_state_dict(before)


class Layered(nn.Module):
    """Several inputs, a method and a function among the layers, a tuple between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
        self.last = nn.Linear(4, 2)

    def both(self, x, y):
        return self.first(x) * self.scale, y

    def add(self, x, y):
        return x + y

    def layers(self):
        return [self.both, self.add, torch.tanh, self.body, self.last]

    def forward(self, x, y):
        for layer in self.layers():
            x, y = layer(x, y) if layer in (self.both, self.add) else layer(x), y
            x, y = x if isinstance(x, tuple) else (x, y)
        return x


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight

    def layers(self):
        return [self.embed, self.inner, self.inner, self.head]

    def forward(self, tokens):
        return self.head(self.inner(self.inner(self.embed(tokens))))


class Pair(nn.Module):
    def forward(self, x):
        return x, x * 2


class OfPair(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


def test_a_sequential_is_taken_apart_to_its_innermost_layers():
    inner = nn.Sequential(nn.BatchNorm1d(4), nn.Sequential())
    model = nn.Sequential(nn.Linear(3, 4), inner, nn.Dropout(0.5), nn.Linear(4, 2))
    cut_up = chain(model, torch.randn(5, 3))
    assert (cut_up.names, cut_up.source) == (["0", "1.0", "2", "3"], "Sequential")
    assert cut_up.links == [model[0], model[1][0], model[2], model[3]]
    for split in ([4], [1, 3], [2, 1, 1], [1, 1, 1, 1]):
        equal(model, cut(cut_up, split, ["cpu"] * len(split)), torch.randn(5, 3))


def test_a_tuple_between_layers_of_a_sequential_stays_one_argument():
    model = nn.Sequential(nn.Linear(3, 3), Pair(), OfPair(), nn.Linear(3, 3))
    equal(model, cut(chain(model, torch.randn(5, 3)), [2, 2], ["cpu"] * 2), torch.randn(5, 3))
    equal(model, cut(chain(model), [1, 1, 2], ["cpu"] * 3), torch.randn(5, 3))


def test_a_sequential_with_a_forward_of_its_own_is_not_taken_for_a_plain_one():
    class Twice(nn.Sequential):
        def forward(self, x):
            return super().forward(super().forward(x))

    inner = nn.Sequential(Twice(nn.Linear(3, 3)), nn.Linear(3, 3))
    assert chain(inner).names == ["0", "1"]
    assert chain(Twice(nn.Linear(3, 3)), torch.randn(2, 3)).source == "traced"


def test_layers_may_be_modules_methods_and_functions():
    model = Layered()
    inputs = torch.randn(5, 3), torch.randn(5, 4)
    cut_up = chain(model, inputs)
    assert cut_up.source == "layers()"
    assert cut_up.names == ["both", "add", "tanh", "body.0", "body.1", "body.2", "last"]
    for split in ([7], [1, 6], [4, 3], [1, 1, 1, 1, 1, 1, 1]):
        equal(model, cut(cut_up, split, ["cpu"] * len(split)), *inputs)


def test_layers_that_compute_something_else_than_forward_are_refused():
    class Wrong(Tied):
        def layers(self):
            return [self.embed, self.inner, self.head]

    with pytest.raises(UserCodeError, match=r"Wrong, taken apart by its layers\(\), is another function.*same order"):
        chain(Wrong(), torch.tensor([[1, 2], [3, 4]]))


@pytest.mark.parametrize("layer, message", [
    (lambda model: lambda x: model.inner(x), "function that holds a module"), (lambda model: 3, "gave a int as layer 1")])
def test_layers_of_which_nobody_can_tell_what_they_use_are_refused(layer, message):
    class Strange(Tied):
        def layers(self):
            return [self.embed, layer(self), self.inner, self.head]

    with pytest.raises(UserCodeError, match=message):
        chain(Strange())


def test_tied_weights_and_modules_used_twice_keep_one_owner():
    model = Tied()
    names = list(model.state_dict())
    cut_up = chain(model, torch.tensor([[1, 2], [3, 4]]))
    weight, inner = model.embed.weight, model.inner.weight
    for split, ties in (([4], 0), ([1, 3], 1), ([2, 2], 3), ([1, 1, 1, 1], 3), ([2, 1, 1], 3)):
        parts = cut(cut_up, split, ["cpu"] * len(split))
        assert sum(len(part.ties) for part in parts) == ties
        assert all(tie.alias.is_leaf and tie.alias.data_ptr() == tie.owner.data_ptr() for part in parts for tie in part.ties)
        equal(model, parts, torch.tensor([[1, 2], [3, 6]]))
    assert model.embed.weight is weight is model.head.weight and model.inner.weight is inner
    assert list(model.state_dict()) == names
    owned = [id(p) for part in cut(cut_up, [2, 2], ["cpu"] * 2) for p in part.parameters()]
    assert len(owned) == len(set(owned)), "no tensor belongs to two parts"


def test_an_alias_follows_when_the_owner_gets_other_memory():
    """As moving averages do for an evaluation."""
    model = Tied()
    parts = cut(chain(model), [2, 2], ["cpu"] * 2)
    model.embed.weight.data = torch.ones_like(model.embed.weight)
    for tie in parts[1].ties:
        tie.sync()
        assert torch.equal(tie.alias, tie.owner)
    equal(model, parts, torch.tensor([[1, 2]]))


def test_tied_weights_on_another_device_are_copied():
    model = Tied()
    parts = cut(chain(model), [2, 2], ["cpu", "meta"])
    assert {tie.alias.device.type for tie in parts[1].ties} == {"meta"}
    assert [tie.owner for tie in parts[1].ties if tie.owner is model.embed.weight]
    assert model.embed.weight.device.type == "cpu"


def test_frozen_weights_are_shared_as_they_are():
    model = Tied().requires_grad_(False)
    parts = cut(chain(model), [2, 2], ["cpu"] * 2)
    assert not parts[1].ties and parts[1].links[1] is model.head


def test_buffers_that_move_are_the_models_own_still():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    cut(chain(model), [1, 1], ["cpu", "meta"])
    assert model[1].running_mean.device.type == "meta"

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.ones(3), persistent=False)
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x)) + self.shift

    model = Shifted()
    parts = cut(chain(model), [1, 1], ["cpu", "meta"])
    assert model.shift.device.type == "meta" and [b for b in parts[1].buffers()] == [model.shift]
    assert list(model.state_dict()) == ["a.weight", "a.bias", "b.weight", "b.bias"]


def test_a_normalisation_layer_cannot_belong_to_two_parts():
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared)
    equal(model, cut(chain(model), [1, 3], ["cpu"] * 2), torch.randn(4, 3))
    with pytest.raises(UserCodeError, match=r"'1' is used by layer 3 \(3\) and by an earlier stage.*hybrid.split"):
        cut(chain(model), [2, 2], ["cpu"] * 2)


def test_a_buffer_that_forward_changes_cannot_belong_to_two_parts():
    """Two threads would write into it, and each run would end with other values; a constant may be shared."""
    class Codebook(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("code", torch.zeros(3))

        def forward(self, x):
            return x + self.code

    shared = Codebook()
    model = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared)
    equal(model, cut(chain(model), [2, 2], ["cpu"] * 2), torch.randn(4, 3))
    cut(chain(model), [1, 3], ["cpu"] * 2, [shared.code])
    for devices in (["cpu"] * 2, ["meta", "cpu"]):
        with pytest.raises(UserCodeError, match=r"averaged buffer '1.code' is used by layer 3 \(3\) and by an earlier stage"):
            cut(chain(model), [2, 2], devices, [shared.code])


def test_training_mode_reaches_copies_and_respects_the_models_own_train():
    class Careful(nn.Module):
        """Keeps one normalisation layer in evaluation mode, and one weight in two modules."""

        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
            self.b[0].weight = self.a.weight

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

        def layers(self):
            return [self.norm, self.a, nn.Identity(), self.b]

        def forward(self, x):
            return self.b(self.a(self.norm(x)))

    model = Careful()
    parts = cut(chain(model), [2, 3], ["cpu"] * 2)
    for mode in (True, False):
        for part in parts:
            part.train(mode)
        assert not model.norm.training
        assert model.b[1].training == mode and all(part.training == mode for part in parts)
        assert [link.training for link in parts[1].links[1:]] == [mode, mode]
    equal(model, parts, torch.randn(5, 3))


@pytest.mark.parametrize("model", [
    nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3)),
    nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.LeakyReLU(0.1, inplace=True)), nn.Linear(3, 3))])
def test_a_part_that_begins_in_place_leaves_its_inputs_alone(model):
    parts = cut(chain(model), [1, 2], ["cpu"] * 2)
    leaf = torch.randn(4, 3, requires_grad=True)
    kept = leaf.detach().clone()
    parts[1](leaf).sum().backward()
    assert torch.equal(leaf, kept) and leaf.grad is not None
    equal(model, parts, torch.randn(4, 3))


def test_what_works_in_place_unseen_is_found_with_an_example():
    class Add(nn.Module):
        def forward(self, x):
            x += 1
            return x

    model = nn.Sequential(nn.Linear(3, 3), Add(), nn.Linear(3, 3))
    assert chain(model).inplace == set() and chain(model, torch.randn(2, 3)).inplace == {1}


def test_around_is_entered_with_the_number_of_each_link_in_the_chain():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    seen = []

    @contextmanager
    def around(number):
        seen.append(number)
        yield
        seen.append(-number)

    parts = cut(chain(model), [1, 3], ["cpu"] * 2)
    parts[1](torch.randn(3, 2), around=around)
    assert seen == [1, -1, 2, -2, 3, -3]


def test_cutting_leaves_nothing_behind_in_the_model():
    model = Layered()
    torch.manual_seed(5)
    state, attributes, random = copy.deepcopy(model.state_dict()), set(vars(model)), torch.get_rng_state()
    chain(model, (torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.ones(5, 4)))
    assert set(vars(model)) == attributes and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values()))
    assert all(p.grad is None for p in model.parameters()) and model.training


def test_keyword_arguments_go_to_the_first_part():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x, *, scale):
            return self.b(self.a(x) * scale)

    model, inputs = Named(), {"x": torch.randn(4, 3), "scale": torch.tensor(2.0)}
    first, second = cut(chain(model, inputs), [1, 1], ["cpu"] * 2)
    torch.testing.assert_close(second(*spread(first(**inputs))), model(**inputs))


@pytest.mark.parametrize("split, devices, message", [
    ([1, 1], ["cpu"], "makes 2 stages, but there are 1 devices"),
    ([2, 2], ["cpu"] * 2, r"4 layers in 2 stages, but the model has 3 layers \(1: 0, 2: 1, 3: 2\)"),
    ([3, 0], ["cpu"] * 2, "Every stage needs one at least"), ([], [], "Every stage needs one at least")])
def test_a_split_that_does_not_fit_is_refused(split, devices, message):
    with pytest.raises(UsageError, match=message):
        cut(chain(nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))), split, devices)


def test_an_empty_sequential_is_refused():
    with pytest.raises(UserCodeError, match="nothing to cut"):
        chain(nn.Sequential(nn.Sequential()))


def test_hooks_on_the_whole_model_are_refused_and_those_within_kept():
    model = Tied()
    called = []
    model.inner.register_forward_hook(lambda *_: called.append(1))
    equal(model, cut(chain(model), [2, 2], ["cpu"] * 2), torch.tensor([[1, 2]]))
    assert len(called) == 8
    model = Layered()
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(UserCodeError, match="hooks are registered on Layered itself"):
        chain(model)


def test_a_model_that_fails_raises_its_own_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        chain(nn.Sequential(nn.Linear(3, 2)), torch.randn(2, 5))


def test_an_example_is_needed_where_arguments_may_be_left_out():
    class Masked(nn.Module):
        def forward(self, x, mask=None):
            return x

    class Pairs(Task):
        def data(self, split):
            return ArraySource(np.ones((5, 3), np.float32), np.arange(5))

        def inputs(self, batch):
            return batch[0], batch[1] > 2

    class Bounded(Masked):
        def layers(self):
            return [nn.Identity()]

    assert example.is_needed(Masked())
    assert not any(map(example.is_needed, (nn.Sequential(nn.Linear(2, 2)), Bounded(), OfPair())))
    before = torch.get_rng_state()
    x, mask = example.inputs(Pairs())
    assert chain(Masked(), (x, mask), check=False)(x, mask) is x
    assert x.shape == (2, 3) and mask.dtype == torch.bool and torch.equal(before, torch.get_rng_state())


def test_one_stage_takes_any_model():
    class Branching(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else F.relu(x)

    parts = cut(whole(Branching()), [1], ["cpu"])
    assert torch.equal(parts[0](torch.ones(2)), 2 * torch.ones(2))
