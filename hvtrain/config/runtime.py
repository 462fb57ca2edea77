"""The sections that say on which workers and how they talk: ``comm``, ``elastic`` and ``launch``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hvtrain.config.base import PositiveDuration, PositiveFloat, PositiveInt, Section, Text, Threads
from hvtrain.config.units import Duration


class CommConfig(Section):
    """How gradients are exchanged."""

    codec: Literal["none"] = Field("none", description=(
        "Compression of gradients on the wire; none sends them as they are."))
    bucket_mb: PositiveFloat = Field(16.0, description=(
        "Size in MB of the buckets that gradients are reduced in. Larger: fewer messages; smaller: more "
        "overlap with the computation."))
    first_bucket_mb: PositiveFloat = Field(1.0, description=(
        "Size in MB of the first bucket to be ready; a small one starts the exchange early."))
    cycle_ms: PositiveFloat = Field(1.0, description=(
        "Milliseconds between two looks of the engine at what is ready to be reduced."))
    timeout: PositiveDuration = Field(Duration(30.0, "30s"), description=(
        "An exchange that waits longer than this for another worker fails."))


class ElasticConfig(Section):
    """Bounds on the number of workers, and how lost ones are noticed."""

    min_workers: PositiveInt = Field(1, description="The job does not run with fewer workers than this.")
    max_workers: PositiveInt | None = Field(None, description=(
        "The job never uses more workers than this. Left out: no bound."))
    replace_timeout: Duration = Field(Duration(2.0, "2s"), description=(
        "How long the others wait for a lost worker before they act without it. In this version they wait for its own "
        "account of its end and then end the job in order; once lost workers are replaced, for its replacement."))
    heartbeat_timeout: PositiveDuration = Field(Duration(5.0, "5s"), description=(
        "A worker that gives no sign of life for so long counts as lost."))


class LaunchConfig(Section):
    """How `hvtrain run` starts workers on this machine."""

    workers: PositiveInt | None = Field(None, description=(
        "Workers to start; -np on the command line has the last word. Left out: 1."))
    start: Literal["fork", "spawn"] = Field("fork", description=(
        "fork imports the framework and your module once and starts all workers from there, in a fraction of "
        "a second; spawn starts a fresh Python for each."))
    threads: Threads = Field("auto", description=(
        "CPU threads that each worker computes with; auto shares the cores among the workers."))
    interface: Text | None = Field(None, description=(
        "Network interface that the workers talk over, for instance eth0. Left out: chosen by itself."))
    start_timeout: PositiveDuration = Field(Duration(120.0, "120s"), description=(
        "How long the workers may take until all of them are ready."))
    stop_timeout: PositiveDuration = Field(Duration(20.0, "20s"), description=(
        "When the job is stopped, how long the workers may take for their last checkpoint before they are "
        "killed."))
