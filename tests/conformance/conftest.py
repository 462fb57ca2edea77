"""Every test of this folder runs against every adapter: what holds for one holds for all."""

from __future__ import annotations

from typing import Any

import pytest

from hvtrain.adapters.base import Adapter
from tests.support.conformance import FRAMEWORKS, Kit, Pool, Rank, load


@pytest.fixture(params=FRAMEWORKS, scope="session")
def kit(request) -> Kit:
    """A framework. pytest runs all tests of one before it comes to the next."""
    return load(request.param)


@pytest.fixture(scope="session")
def pool(kit) -> Pool:
    return Pool(kit)


@pytest.fixture
def make(pool):
    """``make(count, norm=..., dropout=..., given=..., **sections)``, sections of the job: so many fresh adapters."""
    def adapters(count: int = 1, *, norm: bool = False, dropout: float = 0.0, given: bool = True,
                 **sections: Any) -> list[Adapter]:
        return pool.take(count, {"norm": norm, "dropout": dropout, "given": given}, **sections)

    yield adapters
    pool.give_back()


RICH = {"norm": True, "dropout": 0.5, "optim": {"name": "adamw", "lr": 1e-2}, "train": {"ema": 0.5}}


@pytest.fixture
def rich(kit, make):
    """``rich(count)``: ranks whose models have everything that has a state: BatchNorm, Adam's moments, averages."""
    return lambda count=1: [Rank(kit, adapter) for adapter in make(count, **RICH)]
