"""Durable checkpoints: a directory per step, complete or absent, checked when read, free of any framework.

The names below are imported when they are used: the agent needs the shared memory of this package long before
anything else of it. The function ``digest`` is in the module of the same name.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "BackgroundWriter": "background", "Blob": "blob", "Manifest": "manifest", "Retention": "policy",
    "Snapshot": "snapshot", "Store": "store", "Written": "writer", "best": "policy", "better": "policy",
    "resolve_mode": "policy", "step_name": "store", "verify": "manifest", "write": "writer",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
