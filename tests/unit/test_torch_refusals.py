"""What cannot be cut into stages is refused in words that say what to write instead."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hvtrain.errors import UserCodeError
from hvtrain.hybrid.torch.chain import chain


class Model(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.linear, self.does = nn.Linear(4, 4), forward

    def forward(self, x):
        return self.linear(self.does(x))


@pytest.mark.parametrize("does, said", [
    (lambda x: x.reshape(len(x), -1), r"len\(\) of a tensor is not known .*; write tensor.shape\[0\]\n.*refusals.py"),
    (lambda x: x if x.sum() > 0 else -x, r"its control flow .* depends on a tensor, for which there is torch.where, or"),
    (lambda x: x if x.shape[0] > 3 else -x, r"its control flow .* or on the size of one, which is not known while"),
    (lambda x: torch.stack([row for row in x]), r"it goes over a tensor"),
    (lambda x: sum(x[i] for i in range(x.shape[0])), r"a count .* comes from a tensor or its shape")])
def test_what_tracing_cannot_follow_is_named(does, said):
    with pytest.raises(UserCodeError, match=f"Model cannot be cut into stages, .* cannot be traced: {said}"):
        chain(Model(does), torch.randn(3, 4))


def test_compiled_models_are_refused():
    """What torch.compile gives looks like its module, and would be taken apart without a word."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(UserCodeError, match=r"Sequential within torch.compile.*layer.compile\(\)"):
        chain(torch.compile(model), torch.randn(3, 4))
    with pytest.raises(UserCodeError, match="TorchScript .* the module that it was made of"):
        chain(torch.jit.trace(model, torch.randn(3, 4)), torch.randn(3, 4))
