"""Exact data: which samples a step uses (``sampler``), where they come from (``sources``) and how they
reach the training thread (``loader``). Needs numpy and neither framework.

::

    Position(epoch, cursor)
        |  sampler.walk           the same on every rank, whatever the world size
        v
    indices of the global batch
        |  sampler.split          this rank's contiguous slice
        v
    (epoch, indices)  --- Loader: source.fetch, collate, threads, order kept --->  batch
"""

from __future__ import annotations

from hvtrain.data.loader import Loader
from hvtrain.data.sampler import GlobalSampler, Plan, Position, balanced_weights
from hvtrain.data.sources import ArraySource, as_source

__all__ = ["ArraySource", "GlobalSampler", "Loader", "Plan", "Position", "as_source", "balanced_weights"]
