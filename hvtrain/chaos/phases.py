"""What the phases of a worker's course (see ``hvtrain.probe``) mean for a fault that is to strike in them."""

from __future__ import annotations

COMPUTING = ("forward", "backward", "bucket", "reduced", "optimizer")
"""Phases of a step that is being computed: its number is one more than that of the last committed step."""

IN_STEPS = (*COMPUTING, "committed")
"""Phases that every step passes, so that ``step`` means exactly that step; in all others it is the earliest one."""

STATELESS = ("start", "joining")
"""Phases in which a worker does not know yet at which step the others are."""

SEATED = (*IN_STEPS, "evaluation", "checkpoint")
"""Phases in which a worker has its place in a round and holds the state."""

SOME_PASS = ("start", "joining", "state", "checkpoint")
"""Phases that not every worker passes: there ``rank: any`` is the first one to come by, elsewhere it is drawn."""
