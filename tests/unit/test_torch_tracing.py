"""Ordinary modules are cut by tracing; what tracing would get wrong stays whole or is refused."""

from __future__ import annotations

import math
import random
import threading
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from hvtrain.adapters.torch.adapter import TorchAdapter
from hvtrain.config import Job
from hvtrain.data import ArraySource
from hvtrain.engine.world import SoloWorld
from hvtrain.errors import UsageError, UserCodeError
from hvtrain.hybrid.torch import grouping, tracing
from hvtrain.hybrid.torch.chain import chain
from hvtrain.hybrid.torch.parts import cut
from hvtrain.task import Task
from tests.support.torch_strict import Strict
from tests.unit.test_torch_cutting import equal, one_after_another, results


class Attention(nn.Module):
    def __init__(self, width, heads=2):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.p = heads, 0.25

    def forward(self, x, mask=None):
        b, t, width = x.shape
        q, k, v = (layer(x).view(b, t, self.heads, width // self.heads).transpose(1, 2) for layer in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.p if self.training else 0.0)
        return self.out(a.transpose(1, 2).reshape(b, t, width))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, mask=None):
        x = x + F.dropout(self.attention(self.norm(x), mask), 0.1, self.training)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Language(nn.Module):
    """Positions made of the input's shape, a head that is the embedding again."""

    def __init__(self, width=4, blocks=3):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, width), nn.Embedding(16, width)
        self.blocks, self.norm = nn.ModuleList(Block(width) for _ in range(blocks)), nn.LayerNorm(width)

    def forward(self, tokens, causal=True):
        length = tokens.shape[1]
        x = self.tokens(tokens) + self.positions(torch.arange(length, device=tokens.device)) * math.sqrt(2)
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril() if causal else None
        for block in self.blocks:
            x = block(x, mask)
        return F.linear(self.norm(x), self.tokens.weight)


class Residual(nn.Module):
    def __init__(self, channels, stride=1):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


class Net(nn.Module):
    def __init__(self, blocks=2):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.body = nn.Sequential(*(Residual(4) for _ in range(blocks)))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.body(self.stem(x)), 1), 1))


class UNet(nn.Module):
    """Skip connections from each level to the one of the same size."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv1d(2, 2, 3, padding=1) for _ in range(3))
        self.up = nn.ModuleList(nn.Conv1d(4 if i else 2, 2, 3, padding=1) for i in range(3))

    def forward(self, x):
        skips = []
        for layer in self.down:
            x = F.relu(layer(x))
            skips.append(x)
            x = F.max_pool1d(x, 2)
        for number, layer in enumerate(self.up):
            x = F.interpolate(layer(x), scale_factor=2)
            x = x if number == 2 else torch.cat([x, skips.pop(-1) if number else skips.pop()], 1)
        return x


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode, self.head = nn.LSTM(3, 4, batch_first=True), nn.GRU(4, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        hidden, (last, _) = self.encode(x)
        return self.head(self.decode(hidden, last)[0]), last


class Stack(nn.Module):
    """torch.nn's own stacks of layers, with masks."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(4), enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), 2)

    def forward(self, x, y, padding):
        mask = nn.Transformer.generate_square_subsequent_mask(5)
        return self.decoder(y, self.encoder(x, mask, padding), tgt_mask=mask)


class Bilinear(nn.Module):
    """Two towers, two outputs in a dict, weights used without a module."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 3), nn.Linear(2, 3)
        self.form = nn.Parameter(torch.randn(3, 3))
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, a, b):
        a, b = self.left(a), self.right(b)
        return (a @ self.form) * b * self.scale, a.mean(1)


MODELS = {
    "transformer": (Language, lambda: (torch.randint(7, (4, 5)),)),
    "residual": (Net, lambda: (torch.randn(4, 3, 6, 6),)),
    "unet": (UNet, lambda: (torch.randn(4, 2, 16),)),
    "recurrent": (Recurrent, lambda: (torch.randn(4, 5, 3),)),
    "torch.nn's stacks": (Stack, lambda: (torch.randn(4, 5, 4), torch.randn(4, 5, 4), torch.zeros(4, 5))),
    "several inputs": (Bilinear, lambda: (torch.randn(4, 3), torch.randn(4, 2))),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_cut_of_a_traced_model_is_the_model(name):
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    model = build()
    cut_up = chain(model, inputs())
    count = len(cut_up.links)
    assert cut_up.source == "traced" and count > 2 and len(set(cut_up.names)) == count
    for border in range(1, count):
        equal(model, cut(cut_up, [border, count - border], ["cpu"] * 2), *inputs())
    equal(model, cut(cut_up, [1] * count, ["cpu"] * count), *inputs())


def test_blocks_stay_together_and_links_are_named_after_modules():
    model = Language()
    cut_up = chain(model, torch.randint(7, (2, 5)))
    assert cut_up.names[-2:] == ["blocks.2.up", "tokens#2"]
    assert {"blocks.0.attention.q", "blocks.0.up", "blocks.1.attention.q", "blocks.1.up"} < set(cut_up.names)
    assert not any(name.endswith((".k", ".v", ".out", ".down")) for name in cut_up.names)
    names = ["stem.0", "body.0.conv1", "body.1.conv1", "body.2.conv1", "body.3.conv1", "head"]
    assert chain(Net(4), torch.randn(2, 3, 6, 6)).names == names


def test_a_small_model_is_cut_finely():
    names = ["stem.0", "body.0.conv1", "body.0.conv2", "body.1.conv1", "body.1.conv2", "head"]
    assert chain(Net(2), torch.randn(2, 3, 6, 6)).names == names
    assert len(chain(Block(4), torch.randn(2, 3, 4)).links) == 7


def test_the_finest_cut_hands_skip_connections_on():
    model, inputs = UNet(), torch.randn(4, 2, 16)
    links, names = grouping.links(model, tracing.trace(model, (inputs,), {}), near=0)
    assert names == ["down.0", "down.1", "down.2", "up.0", "up.1", "up.2"]
    value = (inputs,)
    widths = []
    for link in links:
        value = link(*value)
        widths.append(len(value))
        value = value if isinstance(value, tuple) else (value,)
    assert widths[:-1] == [1, 1, 2, 2, 1]
    assert torch.equal(value[0], model(inputs))


def test_no_size_of_the_example_is_burnt_in():
    model = Language()
    parts = cut(chain(model, torch.randint(7, (2, 5))), [2, 2, 4], ["cpu"] * 3)
    equal(model, parts, torch.randint(7, (6, 9)))


def test_an_argument_with_a_default_is_cut_for_as_the_example_has_it():
    model, tokens = Language(), torch.randint(7, (2, 5))
    for inputs in ({"tokens": tokens, "causal": False}, (tokens, False), (tokens, True)):
        cut_up = chain(model, inputs)
        named = inputs if isinstance(inputs, dict) else dict(zip(("tokens", "causal"), inputs))
        model.eval(), cut_up.train(False)
        torch.testing.assert_close(cut_up(**named), model(**named))
        with pytest.raises(UserCodeError, match="was cut for causal="):
            cut_up(**{**named, "causal": not named["causal"]})


def test_dropout_follows_the_mode_wherever_it_is_written():
    model = Block(4)
    parts = cut(chain(model, torch.randn(2, 3, 4)), [4, 3], ["cpu"] * 2)
    assert any(node.target.__name__ == "choose" for link in parts[0].links for node in link.graph.nodes
               if node.op == "call_function")
    equal(model, parts, torch.randn(2, 3, 4))
    parts[0].train()
    x = torch.randn(2, 3, 4)
    run = one_after_another(parts)
    assert not torch.equal(run(x)[0], run(x)[0])


class Host(nn.Module):
    """Runs a part that cannot be traced between two layers that can."""

    def __init__(self, inner):
        super().__init__()
        self.a, self.inner, self.b = nn.Linear(3, 3), inner, nn.Linear(3, 3)

    def forward(self, x):
        return self.b(self.inner(self.a(x)))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)


class ByValue(Inner):
    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x


class ByLength(Inner):
    def forward(self, x):
        return sum(self.linear(row) for row in x[: len(x)]) + x


class ByMode(Inner):
    def forward(self, x):
        return self.linear(x) if self.training else self.linear(self.linear(x))


class Counting(Inner):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls


class Remembering(Inner):
    def forward(self, x):
        self.last = self.linear(x)
        return self.last * 2


class Moving(Inner):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return self.linear(x) - self.mean


class Deciding(Inner):
    def forward(self, x):
        return self.linear(x) if random.random() < 2 else x


class Detached(Inner):
    def forward(self, x):
        with torch.no_grad():
            fixed = self.linear(x)
        return x * fixed


class Checkpointed(Inner):
    def forward(self, x):
        return checkpoint(self.linear, x, use_reentrant=False)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x * 2

    @staticmethod
    def backward(context, gradient):
        return gradient * 3


class OwnGradient(Inner):
    def forward(self, x):
        return self.linear(Double.apply(x))


@pytest.mark.parametrize("inner, reason", [
    (ByValue, "control flow"), (ByLength, "len"), (ByMode, "same in training as in evaluation"),
    (Counting, "self.calls"), (Remembering, "self.last"), (Moving, "buffer"), (Deciding, "Python's random"),
    (Detached, "torch.no_grad"), (Checkpointed, "checkpoint"), (OwnGradient, "autograd.Function")])
def test_a_submodule_that_cannot_be_traced_stays_whole(inner, reason):
    model = Host(inner())
    kept = dict(vars(model.inner))
    cut_up = chain(model, torch.randn(4, 3))
    assert cut_up.names == ["a", "inner", "b"] and reason in cut_up.kept_whole["inner"]
    assert vars(model.inner).keys() - {"calls", "last"} == kept.keys() - {"calls", "last"}
    state = random.getstate()
    chain(model)
    assert random.getstate() == state or inner is Deciding
    if inner is not Counting:  # which does not compute the same twice
        equal(model, cut(cut_up, [1, 1, 1], ["cpu"] * 3), torch.randn(4, 3))


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_a_checkpoint_that_only_works_in_an_unsplit_model_is_refused():
    class Reentrant(Inner):
        def forward(self, x):
            return checkpoint(self.linear, x, use_reentrant=True)

    with pytest.raises(UserCodeError, match="use_reentrant=False"):
        chain(Host(Reentrant()), torch.randn(4, 3))


@pytest.mark.parametrize("outer, reason", [
    (Checkpointed, "hybrid.recompute"), (ByValue, "control flow"), (ByMode, "same in training"),
    (Counting, "self.calls"), (Deciding, "Python's random"), (Detached, "Linear|linear")])
def test_a_model_that_cannot_be_traced_is_refused_with_the_place_and_the_ways_out(outer, reason):
    with pytest.raises(UserCodeError, match=reason) as error:
        chain(outer(), torch.randn(4, 3))
    assert f"{outer.__name__} cannot be cut into stages" in str(error.value)
    assert "layers()" in str(error.value) and "nn.Sequential" in str(error.value)
    if outer is ByValue:
        assert "test_torch_tracing.py" in str(error.value) and "if x.sum() > 0" in str(error.value)


def test_random_numbers_and_new_tensors_are_made_anew_each_time():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            grown = torch.zeros(3)
            grown += 1
            return self.b(self.a(x) + torch.rand(3)) + grown

    model = Noisy()
    cut_up = chain(model, torch.randn(4, 3))
    x = torch.randn(4, 3)
    assert not torch.equal(cut_up(x), cut_up(x))
    equal(model, cut(cut_up, [1, 1], ["cpu"] * 2), x)
    assert torch.rand.__name__ == "rand" and isinstance(torch.arange(3), torch.Tensor)


def test_other_threads_make_tensors_as_ever_while_a_model_is_traced():
    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            other = threading.Thread(target=lambda: made.append((type(torch.zeros(2)), type(torch.arange(2)))))
            other.start()
            other.join()
            return self.b(self.a(x) + torch.zeros(3))

    made = []
    model = Watching()
    links, _ = grouping.links(model, tracing.trace(model, None, {}))
    assert set(made) == {(torch.Tensor, torch.Tensor)} and len(links) == 2


def test_a_device_that_is_handed_on_is_that_of_the_part():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            device = x.device
            return self.b(self.a(x + torch.ones(3, device=device))) + torch.ones(3, device=device)

    model = Placed()
    first, second = cut(chain(model), [1, 1], ["cpu", "meta"])
    handed_on = first(torch.randn(2, 3))
    assert any(isinstance(value, torch.device) for value in handed_on)
    moved = [value.to("meta") if isinstance(value, torch.Tensor) else value for value in handed_on]
    assert second(*moved).device.type == "meta"


def test_too_many_stages_are_refused_with_what_was_kept_whole():
    with pytest.raises(UsageError, match=r"into 3 only .1: a, 2: inner, 3: b.*\n  inner was kept whole: its control flow.*if x.sum"):
        cut(chain(Host(ByValue())), [1, 1, 1, 1], ["cpu"] * 4)


def test_assertions_and_assignments_to_items_are_recorded():
    model = Strict()
    parts = cut(chain(model, torch.randn(4, 3, 3)), [1, 1], ["cpu"] * 2)
    equal(model, parts, torch.randn(4, 3, 3))
    with pytest.raises(AssertionError, match=r"torch_strict.py:\d+ does not hold"):
        parts[0](torch.randn(4, 6, 3))


def test_outputs_may_be_dicts_dataclasses_and_nested():
    @dataclass
    class Output:
        logits: torch.Tensor
        extra: dict

    class Rich(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            h = self.a(x)
            return {"h": h, "all": [self.b(h), (h, None)]}

    class Wrapped(Rich):
        def forward(self, x):
            h = self.a(x)
            return Output(self.b(h), {"h": h})

    x = torch.randn(4, 3)
    torch.testing.assert_close(chain(Rich(), x).links[-1](torch.ones(2, 3))["all"][1][1], None)
    model = Wrapped()
    came = chain(model)(x)
    assert isinstance(came, Output)
    assert torch.equal(came.logits, model(x).logits) and torch.equal(came.extra["h"], model(x).extra["h"])


def test_a_buffer_that_forward_changes_in_place_is_the_models():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.seen.add_(len_of(x))
            return self.b(self.a(x)) / self.seen

    model = Counted()
    parts = cut(chain(model, torch.randn(2, 3)), [1, 1], ["cpu"] * 2)
    assert model.seen == 0
    one_after_another(parts)(torch.randn(5, 3))
    assert model.seen == 5 and not [name for name in model.state_dict() if "seen" in name]


def len_of(x):
    return x.shape[0]


def test_a_model_in_another_precision_and_with_frozen_layers_is_traced_alike():
    model = Net().double()
    model.stem.requires_grad_(False)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    parts = cut(chain(model, x), [1, 5], ["cpu"] * 2)
    equal(model, parts, x)
    _, gradients, _ = results(model, one_after_another(parts), (x,), parts)
    assert not any(name.startswith("stem") for name in gradients)


def test_a_module_in_a_plain_list_is_named():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.others = nn.Linear(3, 3), [nn.Linear(3, 3)]

        def forward(self, x):
            return self.others[0](self.a(x))

    with pytest.raises(UserCodeError, match="not installed as a submodule"):
        chain(Hidden())


class MaskedSum(Task):
    """Gives the model an argument that has a default."""

    def __init__(self):
        self.x, self.weights = torch.randn(6, 3), torch.rand(6, 3)

    def model(self):
        class Masked(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

            def forward(self, x, weights=None):
                x = self.b(self.a(x))
                return x if weights is None else x * weights

        return Masked()

    def data(self, split):
        return ArraySource(self.x, self.weights)

    def inputs(self, batch):
        return batch

    def loss(self, outputs, batch):
        return outputs.square().mean(1)


def test_an_argument_with_a_default_reaches_a_model_in_stages():
    found = []
    for hybrid in ({}, {"hybrid": {"stages": 2, "split": [1, 1], "microbatches": 1, "devices": "cpu"}}):
        task = MaskedSum()
        task.x, task.weights = torch.ones(6, 3), torch.full((6, 3), 0.5)
        adapter = TorchAdapter(Job.model_validate({"task": {"target": "t:T"}, **hybrid}), task, threads=1)
        adapter.build()
        adapter.warm_up(lambda: ((task.x, task.weights), 6))
        adapter.join(SoloWorld())
        adapter.seed(0)
        found.append(adapter.gradients([(task.x, task.weights)], [6], 6, []).loss)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
