"""Small models, trained in stages and as they are."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from hvtrain.hybrid.torch.chain import chain
from hvtrain.hybrid.torch.parts import cut
from hvtrain.hybrid.torch.pipeline import Microbatch, Pipeline

SCHEDULES = ("1f1b", "gpipe")
SAMPLES = 16
DATA = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(1))


class Split(nn.Module):
    """Hands on what it was given beside what it makes of it: a skip connection, several layers long."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x).tanh(), x, 3, x.argmax(1)


class Between(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, y, x, factor, chosen):
        return self.layer(y) + y, x, {"factor": factor, "chosen": chosen}


class Join(nn.Module):
    def forward(self, y, x, more):
        return y * x * more["factor"] + more["chosen"][:, None]


class Shared(nn.Module):
    """The weight of another layer, transposed."""

    def __init__(self, other):
        super().__init__()
        self.weight = other.weight

    def forward(self, x):
        return F.linear(x, self.weight.t())


class Two(nn.Module):
    """Takes two inputs, of which one has no gradient."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(5, 8), nn.Linear(4, 8)

    def forward(self, points, places):
        return self.layer(points) + self.table(places)


class Chained(nn.Module):
    """Layers one after another, each given what the tuple of the one before holds."""

    def __init__(self, *layers):
        super().__init__()
        self.all = nn.ModuleList(layers)

    def layers(self):
        return list(self.all)

    def forward(self, *values):
        for layer in self.all:
            given = layer(*values)
            values = given if isinstance(given, tuple) else (given,)
        return given


class Traced(nn.Module):
    """An ordinary module, with a skip connection around several layers and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.norm = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.a(x)
        y = F.relu(self.norm(self.b(x)))
        y = torch.tanh(self.b(y)) * 2
        return self.c(y + x)


def mlp(*more):
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), *more, nn.Tanh(), nn.Linear(8, 8), nn.Tanh(),
                         nn.Linear(8, 3))


def tied():
    first = nn.Linear(4, 8)
    return nn.Sequential(first, nn.Tanh(), Shared(first), nn.Tanh(), first, nn.Tanh(), Shared(first), nn.Linear(4, 3))


def frozen(number):
    model = mlp()
    model[number].requires_grad_(False)
    return model


MODELS = {
    "plain": mlp,
    "norm": lambda: mlp(nn.BatchNorm1d(8)),
    "in place": lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 8),
                                      nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
    "skip": lambda: Chained(nn.Linear(4, 8), Split(), Between(), Join(), nn.Linear(8, 3)),
    "tied": tied,
    "first frozen": lambda: frozen(0),
    "last frozen": lambda: frozen(-1),
    "traced": Traced,
    "two inputs": lambda: Chained(Two(), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3)),
}


def inputs(name, data):
    return (data, torch.arange(len(data)) % 5) if name == "two inputs" else (data,)


def made(name):
    torch.manual_seed(0)
    return MODELS[name]().train()


def loss(outputs):
    return outputs.float().pow(2).sum() / SAMPLES


def splits(layers, stages):
    """As even as possible, the rest in the last one."""
    return [layers // stages] * (stages - 1) + [layers - layers // stages * (stages - 1)]


def piped(model, stages, example=(DATA[:4],), example_loss=loss, **options):
    found = chain(model)
    statistics = [buffer for module in model.modules() if isinstance(module, nn.BatchNorm1d) for buffer in module.buffers()]
    made = Pipeline(cut(found, splits(len(found.links), stages), ["cpu"] * stages), statistics=statistics, **options)
    made.learn(Microbatch(example, example_loss))
    return made


def trained(name, stages, microbatches, steps=1, model=None, seed=3, losses=loss, **options):
    """Gradients and buffers after a step; None where a parameter has none."""
    model = model or made(name)
    pipeline = piped(model, stages, inputs(name, DATA[:4]), losses, **options)
    for _ in range(steps):
        model.zero_grad()
        pipeline.run([Microbatch(inputs(name, part), losses) for part in DATA.tensor_split(microbatches)], seed=seed)
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    return {**found, **{key: buffer.clone() for key, buffer in model.named_buffers()}}


@cache
def whole(name, microbatches):
    """The same by the unsplit model."""
    model = made(name)
    for part in DATA.tensor_split(microbatches):
        loss(model(*inputs(name, part))).backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    return {**found, **{key: buffer.clone() for key, buffer in model.named_buffers()}}


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (value is None) == (found[key] is None), key
        assert value is None or torch.equal(found[key], value), key
