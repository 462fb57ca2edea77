"""What is settled of a job's ``hybrid`` section before workers start, and for which slots of a host."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace

import pytest

from hvtrain.config import Job, load
from hvtrain.control import messages
from hvtrain.control.client import Address
from hvtrain.control.events import AgentLost, CutRound, StartWorker
from hvtrain.control.overview import describe
from hvtrain.control.roster import Status
from hvtrain.drill import runs
from hvtrain.drill.conduct import conduct
from hvtrain.errors import HvtrainError, Uncuttable, UsageError
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.measurement import Measurement
from hvtrain.hybrid.speeds import Speeds
from hvtrain.launch import horovodrun, measurer, settling
from hvtrain.launch.board import KEY, Board, Notice
from hvtrain.launch.groups import Groups
from hvtrain.launch.joblaunch import JobLaunch
from hvtrain.launch.settling import Ground, is_settled, settle, stages_of
from tests.support.membership_story import Story

MB = 10**6


def job(hybrid, **sections):
    values = {"task": {"target": "t:T"}, "data": {"global_batch": 32}, "hybrid": hybrid, **sections}
    return Job.model_validate(values)


def speeds(count=6, parameters=10 * MB, saved=0):
    layers = tuple(LayerCost(f"layer{number}", 0.1, 0.2, parameters, saved, 1000) for number in range(count))
    return Speeds((ModelCosts(layers, 4, "cpu"),))


def all_shared(count):
    """Four threads take a quarter of the time that one takes."""
    one = speeds(count)
    quick = tuple(replace(layer, forward=layer.forward / 4, backward=layer.backward / 4) for layer in one.largest.layers)
    return replace(one, threaded=(replace(one.largest, layers=quick),), threads=4)


@pytest.fixture
def measured(monkeypatch):
    """Stands in for the measurement: what it is to give, and what it was asked for."""
    class Measured:
        found = Measurement(speeds())
        asked: list = []

    def obtain(job, module_dir, *, workers, threads, before, **more):
        Measured.asked.append((workers, threads))
        before()
        return Measured.found

    Measured.asked = []
    monkeypatch.setattr(measurer, "obtain", obtain)
    monkeypatch.setattr(settling, "cores", lambda: 4)
    return Measured


def settled(hybrid, ground=Ground(1), **sections):
    found = settle(job(hybrid, **sections), "/", ground, say=lambda text: None)
    assert is_settled(found.job)
    return found


def test_a_job_without_stages_stays_as_it_is(measured):
    plain = job(None)
    assert settle(plain, "/", Ground(4), say=print).job is plain and is_settled(plain) and not measured.asked


@pytest.mark.parametrize("hybrid", [{}, {"stages": 2}, {"stages": 2, "microbatches": 3}, {"split": [1, 5]},
                                    {"split": [1, 5], "microbatches": 3, "memory": "300MB"}], ids=str)
def test_it_is_known_before_whether_there_will_be_a_measurement(hybrid, measured):
    """Processes that wait for the first one are patient then."""
    settled(hybrid)
    assert settling.may_measure(job(hybrid)) == bool(measured.asked) and not settling.may_measure(job(None))


def test_what_is_given_is_not_measured(measured):
    found = settled({"stages": 2, "split": [1, 5], "microbatches": 3})
    assert found.job.hybrid.microbatches == 3 and not measured.asked and found.note == ""
    found = settled({"split": [1, 2, 3]})
    assert found.job.hybrid.stages == 3 and found.job.hybrid.microbatches == 12 and not measured.asked
    assert settled({"split": [1, 2, 3]}, Ground(8)).job.hybrid.microbatches == 4  # a share of 32 over 8 workers
    assert settled({"split": [6]}).job.hybrid.microbatches == 1


def test_a_split_given_by_hand_is_held_against_the_memory(measured):
    """It was not at first: with a split there seemed to be nothing to measure, and the limit was passed over in silence."""
    assert settled({"split": [3, 3], "memory": "70MB"}).job.hybrid.split == [3, 3] and measured.asked
    with pytest.raises(UsageError, match="80 MB on a device, and that has 70 MB"):
        settled({"split": [4, 2], "memory": "70MB"})


def test_the_split_is_measured_where_only_the_stages_are_given(measured):
    found = settled({"stages": 2, "microbatches": 4}, Ground(2))
    assert found.job.hybrid.split == [3, 3] and found.job.hybrid.microbatches == 4
    assert measured.asked == [(2, 2)]  # two workers on four cores, two threads each
    assert "2 replicas x 2 stages, 4 micro-batches, layers split as 3 + 3" in found.note


def test_the_devices_say_how_many_stages(measured):
    assert stages_of(job({"devices": ["cuda:0", "cuda:1"]})) == 2
    assert stages_of(job({"split": [2, 2, 2]})) == 3 and stages_of(job({})) is None and stages_of(job(None)) == 1
    found = settled({"devices": ["cpu", "cpu", "cpu"]})
    assert found.job.hybrid.stages == 3 and found.job.hybrid.split == [2, 2, 2]


def test_auto_takes_the_cores_that_a_worker_has(measured):
    measured.found = Measurement(speeds(8))
    assert settled({}).job.hybrid.split == [2, 2, 2, 2]
    assert settled({}, Ground(2)).job.hybrid.split == [4, 4]
    assert settled({}, Ground(4)).job.hybrid.split == [8]
    measured.found = Measurement(all_shared(8))  # four threads in one stage are as good as four stages, and simpler
    assert settled({}).job.hybrid.stages == 1


def test_auto_takes_no_stages_that_would_only_take_turns(measured):
    """One micro-batch, or one sample for each of the workers: two stages never compute at the same time."""
    measured.found = Measurement(speeds(8))
    assert settled({"microbatches": 1}).job.hybrid.stages == 1
    assert settled({}, Ground(2), data={"global_batch": 2}).job.hybrid.stages == 1
    assert settled({"stages": 2, "microbatches": 1}).job.hybrid.split == [4, 4]  # asked for
    tight = settled({"memory": "100MB"}, Ground(2), data={"global_batch": 2}).job.hybrid  # nothing else fits
    assert (tight.stages, tight.microbatches) == (2, 1)


def test_workers_and_slots_that_there_are_all_train(measured):
    """A plan may do with fewer processes than cores; those that have been asked for, or started already, are there."""
    measured.found = Measurement(all_shared(8))
    assert settled({}, Ground(4)).prediction.shape.replicas == 4
    found = settled({"stages": 1}, Ground(None, slots=4)).prediction
    assert found.shape.replicas == 4 and found.threads == 1


def test_memory_asks_for_more_stages_than_cores(measured):
    """60 MB of parameters and as many of gradients; a device has 50 MB."""
    found = settled({"memory": "50MB"}, Ground(4)).job.hybrid
    assert found.stages == 3 and found.split == [2, 2, 2]
    with pytest.raises(UsageError, match="fits in no shape.*that has 10 MB"):
        settled({"memory": "10MB"})


def test_the_given_counts_are_kept(measured):
    assert settled({"microbatches": 5}).job.hybrid.microbatches == 5
    assert settled({"stages": 1}).job.hybrid.split == [6]
    assert settled({"recompute": True, "stages": 2}).prediction.shape.recompute
    with pytest.raises(UsageError, match="7 stages need at least 7 layers, but the model can be cut into 6"):
        settled({"stages": 7})


def test_a_split_that_does_not_fit_is_refused_with_the_layers_as_soon_as_they_are_known(measured):
    with pytest.raises(UsageError, match=r"(?s)the model has 6 layers \(1: layer0, .*for instance 'hybrid.split=\[3,3\]'"):
        settled({"split": [1, 99], "memory": "1GB"})
    with pytest.raises(UsageError, match=r"(?s)7 stages need .* 6 only \(1: layer0, .*hybrid.stages=6"):
        settled({"split": [1] * 7, "memory": "1GB"})


def test_settling_twice_gives_the_same(measured):
    one, two = settled({}), settled({})
    assert one.job == two.job and settled(one.job.model_dump(mode="json")["hybrid"]).job == one.job
    assert len(measured.asked) == 2


def test_slots_of_horovodrun_make_the_workers(measured):
    """Four slots on each of two hosts, two stages: two workers on each."""
    found = settled({"stages": 2}, Ground(None, slots=4, hosts=2))
    assert found.prediction.shape.replicas == 4 and measured.asked == [(4, 2)]
    chosen = settled({}, Ground(None, slots=4, hosts=1))
    assert 4 % chosen.job.hybrid.stages == 0 and chosen.prediction.shape.replicas == 4 // chosen.job.hybrid.stages


def test_gpus_are_counted(measured):
    measured.found = Measurement(speeds(), gpus=4, memory=100 * MB)
    assert settled({"stages": 2}, Ground(2)).job.hybrid.split == [3, 3]
    with pytest.raises(UsageError, match="3 workers with 2 stages each need 6 GPUs, this host has 4. Start 2 on this host"):
        settled({"stages": 2}, Ground(3))
    with pytest.raises(UsageError, match="at most 4"):
        settled({"stages": 6})
    assert settled({"stages": 2, "devices": "cpu"}, Ground(3)).job.hybrid.stages == 2
    assert settled({"stages": 2, "devices": ["cpu", "cpu"]}, Ground(3)).job.hybrid.stages == 2
    with pytest.raises(UsageError, match=r"2 workers and 1 standing by \(elastic.spares\) with 2 stages each need 6 GPUs"):
        settled({"stages": 2}, Ground(2), elastic={"spares": 1})


def test_a_model_that_cannot_be_cut_is_refused_with_the_reason_or_stays_whole(measured):
    measured.found = Measurement(speeds(1), whole="Model cannot be cut into stages, because it branches")
    with pytest.raises(Uncuttable, match="because it branches"):
        settled({"stages": 2})
    found = settled({})
    assert found.job.hybrid.split == [1] and found.note.endswith("because it branches")


def test_workers_of_a_host_cannot_have_the_same_devices(measured):
    devices = {"devices": ["cuda:0", "cuda:1"], "split": [3, 3]}
    assert settled(devices).job.hybrid.stages == 2
    with pytest.raises(UsageError, match=r"\[cuda:0, cuda:1\] names the devices of one worker, but 2 workers.*devices=auto"):
        settled(devices, Ground(2))
    with pytest.raises(UsageError, match="2 workers are to run on this host"):
        settled(devices, Ground(None, slots=4, hosts=2))
    assert settled({"devices": ["cpu", "cpu"], "split": [3, 3]}, Ground(2)).job.hybrid.stages == 2


@pytest.mark.parametrize("framework, name", [("torch", "tpu:0"), ("torch", "cuda0"), ("keras", "cuda:a"),
                                             ("torch", "gpu:0")])
def test_a_device_that_nobody_knows_is_refused_before_anything_starts(framework, name, measured):
    job = Job.model_validate({"framework": framework, "task": {"target": "t:T"}, "hybrid": {
        "stages": 2, "split": [1, 1], "devices": ["cpu", name]}})
    with pytest.raises(UsageError, match=f"hybrid.devices has '{name}'; with framework: {framework} a device is cpu"):
        settling.settle(job, ".", settling.Ground(1), lambda words: None)


def test_one_process_of_each_group_leads():
    groups = Groups(2)
    assert [groups.leads(rank, 4) for rank in range(4)] == [True, False, True, False]
    assert [groups.leads(rank, 5) for rank in range(5)] == [True, False, True, False, False]
    assert [Groups(1).leads(rank, 3) for rank in range(3)] == [True] * 3
    assert [Groups(3).leads(rank, 2) for rank in range(2)] == [False] * 2
    assert groups.count(5) == 2 and Groups(1).count(5) == 5


def test_slots_that_do_not_come_out_even_are_refused_with_the_command():
    Groups(2).check(host="a", slots=4, hosts=1, command="hvtrain run job.yaml")
    with pytest.raises(UsageError, match=r"2 stages each worker takes 2 slots.*3 processes on a\. .*horovodrun -np 2 hvtrain"):
        Groups(2).check(host="a", slots=3, hosts=1, command="hvtrain run job.yaml")
    with pytest.raises(UsageError, match=r"1 process on a.*horovodrun -np 4 -H a:2,\.\.\. hvtrain"):
        Groups(2).check(host="a", slots=1, hosts=2, command="hvtrain run job.yaml")


GROUPED = {"0000@a:0": ("a", 1), "0001@a:1": ("a", 0), "0002@a:2": ("a", 1), "0003@a:3": ("a", 0)}


def test_agents_that_stand_by_get_no_worker_and_are_not_missed():
    hello = messages.AgentHello(agent="0001@a:1", host="a", slots=0, pid=os.getpid(), version="0", job_digest="x")
    assert hello.slots == 0
    story = Story(2, GROUPED)
    assert story.of(StartWorker) == [StartWorker("w0", "0000@a:0", 0, 0), StartWorker("w1", "0002@a:2", 1, 1)]
    story.ready("w0", "w1")
    story.formed()
    story.steps(3)
    story(AgentLost("0001@a:1"))
    assert story.status is Status.ACTIVE and story.members == ("w0", "w1") and not story.of(CutRound)
    shown = {agent["agent"]: (agent["slots"], agent["state"]) for agent in describe(story.state, {}).agents}
    assert shown == {"0000@a:0": (1, "here"), "0002@a:2": (1, "here"), "0003@a:3": (0, "standing by")}


class Shelf:
    """A key-value store in memory."""

    def __init__(self):
        self.values = {}

    async def get(self, path):
        return self.values.get(path)

    async def put(self, path, value):
        self.values[path] = value.decode()


def test_what_was_settled_is_told_to_the_other_processes(tmp_path, measured):
    """So that all have the same job; what stands on the board and is no such section is of no use."""
    shelf, launch = Shelf(), JobLaunch(job({"memory": "200MB"}), 1, "lo", "/", "horovodrun -np 4 hvtrain run job.yaml")
    found = settle(launch.job, "/", Ground(None, slots=2, hosts=2), say=print).job
    notice = Notice(Address("127.0.0.1", 1, "token"), workers=2, hybrid=found.model_dump(mode="json")["hybrid"])
    board = Board(shelf, tmp_path)
    asyncio.run(board.announce(notice))
    heard = asyncio.run(board.read())
    assert heard == notice
    first = horovodrun.adopt(JobLaunch(found, 2, "lo", "/", launch.command), notice)
    other = horovodrun.adopt(launch, heard)
    assert other.job.hybrid == found.hybrid and is_settled(other.job) and first.digest == other.digest
    entry = json.loads(shelf.values[KEY])
    asyncio.run(shelf.put(KEY, json.dumps({**entry, "hybrid": {"stages": -1}}).encode()))
    assert asyncio.run(board.read()) is None


def test_a_drill_settles_once_for_both_of_its_runs(tmp_path, monkeypatch, measured):
    """Two measurements would come out differently, and so would the bits that are compared."""
    file = tmp_path / "job.yaml"
    file.write_text(f'version: 1\ntask: {{target: "t:T"}}\nrun: {{dir: {tmp_path / "run"}}}\nhybrid: {{stages: 2}}\n')
    asked = []

    def run(arguments, output, limit):
        asked.append(arguments)
        output.write_text("")
        return runs.Ended(1 if len(asked) > 1 else 0, 1.0)

    monkeypatch.setattr(runs, "run", run)
    try:
        conduct(str(file), [], workers=2, plan_path=None, steps=20, limit=9.0, say=lambda text: None)
    except HvtrainError:
        pass  # there is nothing to judge
    said = [[part for part in arguments if part.startswith("hybrid=")] for arguments in asked]
    assert len(asked) == 2 and said[0] == said[1] and len(measured.asked) == 1
    section = json.loads(said[0][0].partition("=")[2])
    assert section["split"] == [3, 3] and section["stages"] == 2 and isinstance(section["microbatches"], int)
    assert is_settled(load(file, said[0]))
