"""From the job file's ``optim`` to PyTorch's parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hvtrain import Task
from hvtrain.adapters.torch import optimizers
from hvtrain.config import GroupConfig, OptimConfig
from hvtrain.errors import UsageError, UserCodeError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.head = nn.Linear(3, 2)


def group(params, **values): return GroupConfig(params=params, **values)


def build(task=None, model=None, **config):
    model, config = model or Net(), OptimConfig(**config)
    optimizers.freeze(model, config.groups)
    return optimizers.build(task or Task(), model, config)


def names(optimizer, model):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [[by_id[id(p)] for p in g["params"]] for g in optimizer.param_groups]


@pytest.mark.parametrize("name, cls", [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW),
                                       ("rmsprop", torch.optim.RMSprop), ("adagrad", torch.optim.Adagrad)])
def test_every_name(name, cls):
    optimizer = build(name=name, lr=0.25, weight_decay=0.5)
    assert type(optimizer) is cls
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.25, 0.5)]


def test_what_is_left_out_is_the_optimizers_own_default():
    assert build(name="adamw").param_groups[0]["weight_decay"] == 0.01
    assert build(name="sgd").param_groups[0]["momentum"] == 0


def test_args_reach_the_class():
    (found,) = build(name="adamw", args={"betas": [0.8, 0.9], "eps": 1e-6}).param_groups
    assert found["betas"] == (0.8, 0.9) and found["eps"] == 1e-6


def test_the_first_matching_group_wins_and_the_rest_has_the_base_settings():
    model = Net()
    optimizer = build(model=model, name="sgd", lr=1.0, momentum=0.5, groups=[
        group("*.bias", weight_decay=0.0), group("backbone.*", lr=0.1, momentum=0.9)])
    by_names = {tuple(n): g for n, g in zip(names(optimizer, model), optimizer.param_groups)}
    assert set(by_names) == {("backbone.0.weight", "backbone.1.weight"),
                             ("backbone.0.bias", "backbone.1.bias", "head.bias"), ("head.weight",)}
    backbone = by_names["backbone.0.weight", "backbone.1.weight"]
    assert (backbone["lr"], backbone["momentum"]) == (0.1, 0.9)
    assert (by_names["head.weight",]["lr"], by_names["head.weight",]["momentum"]) == (1.0, 0.5)


def test_freezing_takes_parameters_out():
    model = Net()
    optimizer = build(model=model, groups=[group("backbone.*", freeze=True)])
    assert names(optimizer, model) == [["head.weight", "head.bias"]]
    assert not model.backbone[0].weight.requires_grad


def test_a_pattern_that_matches_nothing_is_a_mistake():
    with pytest.raises(UsageError, match=r"groups\[1\].*'backbon.\*'.*backbone.0.weight"):
        build(groups=[group("head.*", lr=0.1), group("backbon.*", lr=0.1)])


def test_a_pattern_behind_one_that_takes_all_is_a_mistake():
    with pytest.raises(UsageError, match="earlier group"):
        build(groups=[group("*", lr=0.1), group("head.*", lr=0.2)])


def test_everything_frozen_is_a_mistake():
    with pytest.raises(UserCodeError, match="no trainable parameter"):
        build(groups=[group("*", freeze=True)])


def test_unknown_args_are_named_with_the_known_ones():
    with pytest.raises(UsageError, match="beta, which AdamW does not take. It takes: .*betas"):
        build(args={"beta": 1})


def test_values_that_torch_refuses():
    with pytest.raises(UsageError, match="does not fit AdamW"):
        build(args={"betas": [2.0, 3.0]})


def test_an_own_optimizer_gets_the_groups():
    class Own(Task):
        def optimizer(self, groups):
            return torch.optim.NAdam(groups)

    optimizer = build(task=Own(), lr=0.5, groups=[group("head.*", lr=0.125)])
    assert sorted(g["lr"] for g in optimizer.param_groups) == [0.125, 0.5]


def test_an_own_optimizer_must_be_one():
    class Own(Task):
        def optimizer(self, groups):
            return "adam"

    with pytest.raises(UserCodeError, match="str"):
        build(task=Own())


@pytest.mark.parametrize("tensor", [False, True])
def test_rates_follow_the_schedule_and_keep_their_ratio(tensor):
    optimizer = build(lr=1.0, groups=[group("head.*", lr=0.1)])
    if tensor:
        for found in optimizer.param_groups:
            found["lr"] = torch.tensor(found["lr"])
    base = optimizers.base_rates(optimizer)
    for factor in (0.5, 0.25):
        assert optimizers.set_rates(optimizer, base, factor) == base[0] * factor
        assert [float(g["lr"]) for g in optimizer.param_groups] == pytest.approx([b * factor for b in base])


def test_changed_settings_are_what_is_not_as_it_was():
    optimizer = build(name="sgd", momentum=0.5)
    initial = [dict(found) for found in optimizer.param_groups]
    assert optimizers.changed_settings(optimizer, initial) == [{}]
    optimizer.param_groups[0].update(momentum=0.75, lr=9.0)
    assert optimizers.changed_settings(optimizer, initial) == [{"momentum": 0.75}]


def test_complex_parameters_do_without_the_fused_form():
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    assert build(model=model, name="adamw").param_groups[0]["fused"] in (None, False)


def test_settings_that_the_tasks_own_optimizer_would_ignore_are_refused():
    """optim.name=sgd beside an optimizer of the task's own once was taken without a word, and did nothing."""
    class Own(Task):
        def optimizer(self, groups):
            return torch.optim.SGD(groups)

    model = nn.Linear(2, 2)
    assert isinstance(optimizers.build(Own(), model, OptimConfig(name="adamw", lr=0.1)), torch.optim.SGD)
    with pytest.raises(UsageError, match="optim.momentum would do nothing"):
        optimizers.build(Own(), model, OptimConfig(momentum=0.5))
