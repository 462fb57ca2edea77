"""Functions that make tensors out of nothing, recorded while a model is traced.

fx records what is done to proxies. ``torch.arange(n)`` refuses a proxy for ``n``, and ``torch.rand(3)`` has none at
all, so that its result would become a constant of the graph.
"""

from __future__ import annotations

import functools
import threading
from contextlib import contextmanager
from typing import Any, Callable, Iterator

import torch
from torch import fx

ALWAYS = ("arange", "bartlett_window", "blackman_window", "empty", "eye", "full", "hamming_window", "hann_window",
          "linspace", "logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "range", "tril_indices",
          "triu_indices", "zeros")
WITH_PROXIES = ("as_tensor", "finfo", "iinfo", "tensor", "full_like", "scalar_tensor")


@contextmanager
def factories_recorded(tracer: fx.Tracer) -> Iterator[None]:
    """Within this context ``torch.arange`` and its like become nodes of ``tracer``'s graph, in this thread."""
    thread = threading.get_ident()
    kept = {name: getattr(torch, name) for name in (*ALWAYS, *WITH_PROXIES)}

    def recorded(function: Callable[..., Any], always: bool) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def record(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread and (always or _has_proxy((args, kwargs))):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)
        return record

    try:
        for name, function in kept.items():
            setattr(torch, name, recorded(function, name in ALWAYS))
        yield
    finally:
        for name, function in kept.items():
            setattr(torch, name, function)


def _has_proxy(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_has_proxy, value))
    if isinstance(value, dict):
        return any(map(_has_proxy, value.values()))
    return isinstance(value, fx.Proxy)
