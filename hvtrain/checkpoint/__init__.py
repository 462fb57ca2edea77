"""Durable checkpoints: a directory per step, complete or absent, checked when read, free of any framework.

The function ``digest`` is in the module of the same name.
"""

from hvtrain.checkpoint.background import BackgroundWriter
from hvtrain.checkpoint.blob import Blob
from hvtrain.checkpoint.manifest import Manifest, verify
from hvtrain.checkpoint.policy import Retention, best, better, resolve_mode
from hvtrain.checkpoint.snapshot import Snapshot
from hvtrain.checkpoint.store import Store, step_name
from hvtrain.checkpoint.writer import Written, write

__all__ = [
    "BackgroundWriter", "Blob", "Manifest", "Retention", "Snapshot", "Store", "Written",
    "best", "better", "resolve_mode", "step_name", "verify", "write",
]
