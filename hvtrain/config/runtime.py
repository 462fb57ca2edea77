"""The sections that say on which workers and how they talk: ``comm``, ``elastic`` and ``launch``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hvtrain.config.base import (
    DurationOrAuto, NonNegativeInt, Patience, Port, PositiveDuration, PositiveFloat, PositiveInt, Section,
    StepsTimeOrAuto, Text, Threads,
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
    replace_timeout: DurationOrAuto = Field(Duration(2.0, "2s"), description=(
        "How long the others wait for a lost worker's replacement before they go on without it; it then joins at a "
        "later step. auto: half as long again as workers take to start in this job, from 2 s to 30 s; 2 s where they "
        "take longer than that."))
    heartbeat_timeout: PositiveDuration = Field(Duration(5.0, "5s"), description=(
        "A worker or an agent that gives no sign of life for so long counts as lost."))
    step_timeout: Patience = Field("auto", description=(
        "A worker that gets nothing done for so long, while the others wait for it, counts as lost. auto: ten times the "
        "slowest step so far, but at least 20 s."))
    coordinator_timeout: PositiveDuration = Field(Duration(30.0, "30s"), description=(
        "When the coordinator has not been heard for so long, the workers save a checkpoint and stop. They take no step "
        "without it for longer than heartbeat_timeout, in case it goes on with others."))
    rejoin_timeout: Duration = Field(Duration(300.0, "5m"), description=(
        "How long a host that cannot reach the coordinator keeps looking for it once its workers have stopped, to begin "
        "anew when the network is back."))
    snapshot_every: StepsTimeOrAuto | None = Field("auto", description=(
        "How often each host keeps a copy of the training's state in shared memory, outside the workers: what the job "
        "goes on from when all workers die at once. Steps, or a time; auto: as often as it costs at most 0.5 % of the "
        "time. null: never; then the last checkpoint serves."))
    max_failures_per_step: PositiveInt = Field(3, description=(
        "A step that fails so many times ends the job with the first failure's own message. Three losses from outside, by "
        "kills or of hosts, count as one failure."))
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
        "CPU threads that each worker computes with; auto shares the cores among the workers. The same number on all hosts, "
        "the least that a worker has anywhere when the job starts: with another one sums would be rounded differently. A run "
        "that goes on with as many workers keeps it."))
    interface: Text | None = Field(None, description=(
        "Network interface that the workers talk over, for instance eth0. Left out: chosen by itself."))
    port: Port | None = Field(None, description=(
        "Port that the job's coordinator listens at, so that agents can be told before it is started. Left out: any that is "
        "free."))
    token_file: Text | None = Field(None, description=(
        "File with the secret that agents of this job prove themselves with, at least 32 characters, readable by you alone; "
        "the environment variable HVTRAIN_TOKEN says it as well. Left out: a new one for each start."))
    tls: bool = Field(False, description=(
        "Encrypt what agents, workers and commands say to the coordinator. Its certificate is made for this job alone and "
        "trusted by the job's token, so nothing has to be handed out. What workers say to each other is not encrypted."))
    hosts: Text | list[Text] | None = Field(None, description=(
        "Hosts to start workers on over ssh, each with its slots: h1:4,h2:4. -H on the command line has the last word."))
    hostfile: Text | None = Field(None, description=(
        "File with such hosts, a line each: h1 slots=4, or h1:4."))
    host_discovery_script: Text | None = Field(None, description=(
        "Program that prints such hosts, a line each: h1:4. It is run again and again: what it adds joins the job, what it "
        "leaves out leaves."))
    discovery_interval: PositiveDuration = Field(Duration(1.0, "1s"), description=(
        "The pause between two runs of host_discovery_script."))
    ssh_port: Port | None = Field(None, description="Port of the hosts' sshd. Left out: what ssh itself takes.")
    ssh_identity_file: Text | None = Field(None, description=(
        "File with the key for the hosts. Left out: what ssh itself takes."))
    connect_timeout: PositiveDuration = Field(Duration(10.0, "10s"), description=(
        "How long a connection to a host by ssh may take."))
    start_timeout: PositiveDuration = Field(Duration(120.0, "120s"), description=(
        "How long the workers may take until all of them are ready."))
    stop_timeout: PositiveDuration = Field(Duration(20.0, "20s"), description=(
        "When the job is stopped, how long the workers may take for their last checkpoint before they are "
        "killed."))

    @property
    def names_hosts(self) -> bool:
        """Whether it says which hosts there are."""
        return any(way is not None for way in (self.hosts, self.hostfile, self.host_discovery_script))
