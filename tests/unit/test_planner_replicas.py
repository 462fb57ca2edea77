"""How many replicas come into question for which machines: no more than there are samples and devices for, and fewer
with several threads each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hvtrain.errors import UsageError
from hvtrain.hybrid.cluster import Cluster
from hvtrain.hybrid.planner import Choice, occupied, plan, shapes
from hvtrain.hybrid.prediction import Shape
from hvtrain.hybrid.speeds import Speeds
from tests.unit.test_planner import MB, costs


def kinds(cluster, global_batch, choice=Choice(fewer=True), layers=4):
    """Replicas and stages that come into question, and the machines that they take."""
    found = shapes(cluster, layers, global_batch, choice)
    return {(shape.replicas, shape.stages): occupied(cluster, shape).nodes for shape in found}


def test_replicas_end_where_samples_do():
    """1000 machines with 64 devices and 32 samples a step: 16000 replicas were recommended, 15968 of them without work."""
    assert kinds(Cluster(nodes=1000, devices=64), 32) == {(32, 1): 1, (32, 2): 1, (32, 4): 2}
    assert kinds(Cluster(nodes=1000, devices=4), 32) == {(32, 1): 8, (32, 2): 16, (32, 4): 32}
    assert kinds(Cluster(nodes=4, devices=8), 512) == {(32, 1): 4, (16, 2): 4, (8, 4): 4}
    assert kinds(Cluster(devices=8), 3) == {(3, 1): 1, (3, 2): 1, (2, 4): 1}
    found = plan(costs(), Cluster(nodes=1000, devices=64), 32, Choice(fewer=True, codecs=("none", "int8")))
    assert found.best.shape == Shape(32, 1, 1) and found.best.sent == 0
    assert "so it takes 1 of the 1000 machines; a larger data.global_batch" in found.reason
    alone = plan(costs(), Cluster(devices=64), 8, Choice(fewer=True))
    assert "8 samples a step are work for 8 replicas and no more, so it takes 8 of the 64 devices" in alone.reason
    assert "a larger data.global_batch" not in plan(costs(), Cluster(nodes=4, devices=8), 32, Choice(fewer=True)).reason


def test_workers_that_are_there_are_not_left_out():
    """More of them than samples, and the number of stages is open: eight stages were all that was looked at."""
    found = list(shapes(Cluster(devices=8, cores=8), 8, 2, Choice(replicas=4, stages=(1, 2, 8))))
    assert {shape.stages for shape in found} == {1, 2, 8} and {shape.replicas for shape in found} == {4}


def test_fewer_processes_than_cores_come_into_question():
    """On two cores one replica with two threads was never compared with two replicas, nor with two stages."""
    assert set(kinds(Cluster(devices=2, cores=2), 16)) == {(1, 1), (2, 1), (1, 2)}
    assert set(kinds(Cluster(devices=6, cores=6), 16)) == {(1, 1), (2, 1), (4, 1), (6, 1), (1, 2), (2, 2), (3, 2), (1, 3),
                                                           (2, 3)}
    assert set(kinds(Cluster(nodes=3, devices=2, cores=2), 16)) == {(3, 1), (6, 1), (3, 2)}
    assert kinds(Cluster(nodes=9, devices=2, cores=2), 5) == {(5, 1): 5, (5, 2): 5}
    # Those who have started so many processes, and devices of their own, use them all:
    assert set(kinds(Cluster(devices=2, cores=2), 16, Choice())) == {(2, 1), (1, 2)}
    assert set(kinds(Cluster(devices=2), 16)) == {(2, 1), (1, 2)}


def test_one_process_with_all_threads_is_recommended_where_threads_are_as_good():
    """Threads that share everything save the reduction; where they share nothing replicas are twice as fast."""
    shared, alike = (Speeds(costs().alone, threaded=costs(forward=forward, backward=2 * forward).alone, threads=2)
                     for forward in (0.05, 0.1))
    found = plan(shared, Cluster(devices=2, cores=2), 16, Choice(fewer=True))
    assert found.best.shape == Shape(1, 1, 1) and found.best.threads == 2
    assert "2 replicas x 1 stage, 1 micro-batch would take" in found.reason
    assert plan(alike, Cluster(devices=2, cores=2), 16, Choice(fewer=True)).best.shape.replicas == 2


def test_threads_that_the_job_chooses_are_no_more():
    """launch.threads: 1 leaves a single worker one thread of the four that it would have."""
    cluster = Cluster(devices=4, cores=4)
    assert [cluster.threads(*shape) for shape in ((1, 1), (1, 2), (2, 1), (1, 3), (4, 2))] == [4, 2, 2, 1, 1]
    chosen = replace(cluster, most_threads=2)
    assert [chosen.threads(*shape) for shape in ((1, 1), (1, 2), (2, 2), (4, 1))] == [2, 1, 1, 1]


def test_stages_that_never_compute_at_once_are_not_recommended():
    """A tiny model with one micro-batch was to be trained in two stages, of which one always waits for the other: that saved
    what adding up gradients takes."""
    tiny = costs(2, forward=1e-5, backward=2e-5, parameters=1000)
    cluster = Cluster(devices=2, cores=2)
    found = plan(tiny, cluster, 2, Choice(replicas=None, microbatches=1))
    serial = next(each for each in found.predictions if each.shape.serial)
    assert serial.seconds < found.best.seconds and found.best.shape == Shape(2, 1, 1)
    assert "With one sample for each replica stages would only take turns" in found.reason
    # unless nothing else fits the memory
    tight = plan(costs(2), Cluster(devices=2, memory=300 * MB), 1, Choice(fewer=True))
    assert tight.best.shape == Shape(1, 2, 1) and "its stages take turns; with a larger data.global_batch" in tight.reason


def test_devices_of_their_own_hold_one_stage_each():
    """Four machines with one device were planned to train 4 replicas of 2 stages, on eight devices."""
    with pytest.raises(UsageError, match=r"2 stages need 2 devices on each machine, there is 1 \(--devices\).*at most 1"):
        plan(costs(), Cluster(nodes=4), 16, Choice(stages=(2,)))
    with pytest.raises(UsageError, match=r"4 replicas of 2 stages need 8 devices on each machine, there are 4"):
        plan(costs(), Cluster(devices=4), 16, Choice(replicas=4, stages=(2,)))
    with pytest.raises(UsageError, match="4 replicas of 1 stage need 4 devices.*there are 2.*launch.workers to at most 2"):
        plan(costs(), Cluster(devices=2), 16, Choice(replicas=4, stages=(1,)))
    assert plan(costs(), Cluster(nodes=4, cores=1), 16, Choice(stages=(2,))).best.crowded  # threads take turns
