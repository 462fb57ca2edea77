"""Signals that an agent sends to its workers."""

from __future__ import annotations

import signal

STACKS_SIGNAL = signal.SIGUSR2
"""Has a worker write the stacks of all its threads to its log, whatever it is doing."""

STACKS_SECONDS = 0.2
"""How long a worker has for that before it is killed."""
