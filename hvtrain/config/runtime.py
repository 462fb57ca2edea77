"""The sections that say on which workers and how they talk: ``comm``, ``elastic`` and ``launch``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hvtrain.config.base import (
    NonNegativeInt, Patience, PositiveDuration, PositiveFloat, PositiveInt, Section, StepsTimeOrAuto, Text,
    Threads,
)
from hvtrain.config.units import Duration


class CommConfig(Section):
    """How gradients are exchanged."""

    codec: Literal["none", "fp16", "bf16", "int8"] = Field("none", description=(
        "Compression of gradients between hosts: fp16 and bf16 halve the bytes, int8 quarters them. They are added up "
        "in float32 whatever it is. none sends them as they are. Workers of one host never compress; see shared_memory."))
    bucket_mb: PositiveFloat = Field(16.0, description=(
        "Size in MB of the buckets that gradients are reduced in. Larger: fewer messages; smaller: more "
        "overlap with the computation."))
    first_bucket_mb: PositiveFloat = Field(1.0, description=(
        "Size in MB of the first bucket to be ready; a small one starts the exchange early."))
    cycle_ms: PositiveFloat = Field(1.0, description=(
        "Milliseconds between two looks of the engine at what is ready to be reduced."))
    shared_memory: bool = Field(True, description=(
        "Workers of one host add their gradients up through memory that they share, before anything crosses the "
        "network. false: over the loopback interface, compressed like everything else."))
    timeout: PositiveDuration = Field(Duration(30.0, "30s"), description=(
        "An exchange that waits longer than this for another worker fails."))


class ElasticConfig(Section):
    """What happens when workers are lost, and how many there may be."""

    enabled: bool = Field(True, description=(
        "Replace lost workers and go on. false: a lost worker ends the job, after a checkpoint by a survivor."))
    min_workers: PositiveInt = Field(1, description="The job does not run with fewer workers than this.")
    max_workers: PositiveInt | None = Field(None, description=(
        "The job never uses more workers than this. Left out: no bound."))
    spares: NonNegativeInt = Field(0, description=(
        "Workers that stand by with their model built, to take a lost one's place without a moment's wait. Each needs "
        "the memory of a worker and a slot."))
    replace_timeout: Duration = Field(Duration(2.0, "2s"), description=(
        "How long the others wait for a lost worker's replacement before they go on without it; it then joins at a "
        "later step."))
    heartbeat_timeout: PositiveDuration = Field(Duration(5.0, "5s"), description=(
        "A worker or an agent that gives no sign of life for so long counts as lost."))
    step_timeout: Patience = Field("auto", description=(
        "A worker that gets nothing done for so long, while the others wait for it, counts as lost. auto: ten times the "
        "slowest step so far, but at least 20 s."))
    coordinator_timeout: PositiveDuration = Field(Duration(10.0, "10s"), description=(
        "When the coordinator cannot be reached for so long, the workers save a checkpoint and stop."))
    snapshot_every: StepsTimeOrAuto | None = Field("auto", description=(
        "How often each host keeps a copy of the training's state in shared memory, outside the workers: what the job "
        "goes on from when all workers die at once. Steps, or a time; auto: as often as it costs at most 0.5 % of the "
        "time. null: never; then the last checkpoint serves."))
    max_failures_per_step: PositiveInt = Field(3, description=(
        "A step that fails so many times ends the job with the first failure's own message."))
    max_losses_per_hour: PositiveInt | None = Field(200, description=(
        "More lost workers than this within an hour end the job. null: no bound."))
    on_resize: Literal["keep_global_batch", "keep_local_batch"] = Field("keep_global_batch", description=(
        "When the number of workers changes: keep_global_batch changes nothing in the mathematics; keep_local_batch "
        "scales the global batch with the number of workers, data.global_batch being that of launch.workers."))
    lr_scaling: Literal["linear", "sqrt", "none"] = Field("linear", description=(
        "With keep_local_batch: how the learning rate follows the global batch."))


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
