"""The section `hybrid`: off unless it is written, and what cannot be is refused with the key to change."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvtrain.config import Job, dump, load
from hvtrain.data.feed import feed, pieces
from hvtrain.data.loader import Loader
from hvtrain.data.sampler import GlobalSampler, Position, bounds, even, split
from hvtrain.data.sources import ArraySource
from hvtrain.errors import ConfigError, UsageError

TASK = "task: {target: 'a:b'}\n"


@pytest.fixture
def job(tmp_path):
    """Loads a job from the text below its task, and from overrides."""
    def loaded(body="", *overrides, task=TASK):
        path = tmp_path / "job.yaml"
        path.write_text(task + body)
        return load(path, overrides, {})
    return loaded


@pytest.fixture
def refused(job):
    """The mistakes of a job, as (key, line, message)."""
    def found(body, *overrides, **rest):
        with pytest.raises(ConfigError) as error:
            job(body, *overrides, **rest)
        return [(problem.key, problem.line, problem.message) for problem in error.value.problems]
    return found


@pytest.mark.parametrize("body", ["", "hybrid:", "hybrid: null"])
def test_without_the_section_there_are_no_stages(job, body):
    assert job(body).hybrid is None


def test_an_empty_section_leaves_all_to_the_planner(job):
    hybrid = job("hybrid: {}").hybrid
    assert (hybrid.stages, hybrid.microbatches, hybrid.schedule, hybrid.devices) == ("auto", "auto", "1f1b", "auto")
    assert (hybrid.recompute, hybrid.memory, hybrid.split) == (False, None, None)


def test_one_key_on_the_command_line_makes_the_section(job):
    assert job("", "hybrid.stages=2").hybrid.stages == 2
    assert job("hybrid: {stages: 2}", "hybrid=null").hybrid is None


def test_a_whole_section_is_read_and_written_back_the_same(job, tmp_path):
    first = job("hybrid: {stages: 2, microbatches: 8, schedule: gpipe, devices: ['cuda:0', 'cuda:1'], recompute: true, "
                "memory: 80GB, split: [3, 5]}")
    assert first.hybrid.memory.bytes == 80 * 10**9 and first.hybrid.split == [3, 5]
    again = tmp_path / "again.yaml"
    again.write_text(dump(first))
    assert load(again, env={}) == first
    assert "80GB" in dump(first)
    assert Job.model_validate(json.loads(first.model_dump_json())) == first


@pytest.mark.parametrize("body, key, words", [
    ("hybrid: {stages: 0}", "hybrid.stages", "above 0"),
    ("hybrid: {stages: many}", "hybrid.stages", "or auto; got 'many'"),
    ("hybrid: {microbatches: 1.5}", "hybrid.microbatches", "or auto; got 1.5"),
    ("hybrid: {schedule: 1f1}", "hybrid.schedule", "did you mean 1f1b?"),
    ("hybrid: {devices: gpu}", "hybrid.devices", "expected auto, cpu, or the device of each stage, such as [cuda:0"),
    ("hybrid: {devices: cuda:0}", "hybrid.devices", "got 'cuda:0'"),
    ("hybrid: {devices: []}", "hybrid.devices", "got []"),
    ("hybrid: {devices: ['']}", "hybrid.devices", "got ['']"),
    ("hybrid: {devices: [cpu, 1]}", "hybrid.devices", "got ['cpu', 1]"),
    ("hybrid: {memory: lots}", "hybrid.memory", 'such as "80GB" or "512MiB", got \'lots\''),
    ("hybrid: {split: []}", "hybrid.split", "must not be empty"),
    ("hybrid: {split: 4}", "hybrid.split", "a list, got 4"),
    ("hybrid: {split: [2, 0]}", "hybrid.split.1", "above 0, got 0"),
    ("hybrid: {recompute: 1}", "hybrid.recompute", "true or false"),
    ("hybrid: {stage: 2}", "hybrid.stage", "did you mean stages?"),
    ("hybrid: 2", "hybrid", "keys with values, got 2"),
])
def test_single_mistakes(refused, body, key, words):
    ((where, line, message),) = refused(body)
    assert (where, line) == (key, 2)
    assert words in message


@pytest.mark.parametrize("body, key, words", [
    ("framework: numpy\nhybrid: {stages: 2}", "hybrid", "numpy has no stages"),
    ("data: {micro_batch: 4}\nhybrid: {stages: 2}", "data.micro_batch", "data.micro_batch=null"),
    ("framework: keras\ntrain: {jit_compile: true}\nhybrid: {stages: 2}", "train.jit_compile", "XLA"),
    ("hybrid: {stages: 2, split: [1, 2, 3]}", "hybrid.split", "each of the 2 stages, got 3: [1, 2, 3]"),
    ("hybrid: {stages: 2, devices: ['cuda:0']}", "hybrid.devices", "each of the 2 stages, got 1: [cuda:0]"),
    ("hybrid: {devices: [cpu, cpu], split: [1, 2, 3]}", "hybrid.devices", "2 devices, but split makes 3 stages"),
])
def test_impossible_combinations(refused, body, key, words):
    ((where, line, message),) = refused(body)
    assert where == key and line == body[:body.index(key.rpartition(".")[2])].count("\n") + 2
    assert words in message


def test_a_script_cannot_be_cut(refused):
    ((key, _, message),) = refused("hybrid: {stages: 2}", task="task: {script: train.py}\n")
    assert key == "hybrid" and "task.target" in message and "train.py" in message


def test_each_list_is_named_once_where_both_clash_with_the_number_of_stages(refused):
    found = refused("hybrid: {stages: 2, split: [1, 2, 3], devices: [cpu]}")
    assert [key for key, _, _ in found] == ["hybrid.split", "hybrid.devices"]


@pytest.mark.parametrize("body", [
    "hybrid: {stages: 2, split: [3, 5], devices: ['cuda:0', 'cuda:1']}", "hybrid: {split: [3, 5, 1]}",
    "hybrid: {devices: [cuda:0, cuda:1]}", "hybrid: {stages: 1, microbatches: 1}", "hybrid: {stages: 4, devices: cpu}",
    "hybrid: {stages: 3}",
    "framework: keras\nhybrid: {stages: 2, schedule: gpipe}", "hybrid: {devices: ['cuda:0', 'cuda:1']}",
    "hybrid: {memory: 512MiB, recompute: true}",
])
def test_possible_combinations(job, body):
    assert job(body).hybrid is not None


@given(st.integers(0, 200), st.integers(1, 40))
def test_even_pieces_hold_all_in_order_and_differ_by_one_at_most(count, parts):
    indices = np.arange(count) * 3
    found = even(indices, parts)
    assert np.concatenate([*found, np.empty(0, int)]).tolist() == indices.tolist()
    assert len(found) == min(count, parts)
    sizes = [len(piece) for piece in found]
    assert not sizes or (min(sizes) >= 1 and max(sizes) - min(sizes) <= 1)


def test_no_piece_at_all_is_refused():
    with pytest.raises(UsageError, match="hybrid.microbatches must be at least 1, got 0"):
        even(np.arange(3), 0)


def test_a_share_is_cut_evenly_with_the_section_and_by_size_without(job):
    share = np.arange(10)
    sizes = {name: [len(piece) for piece in pieces(job(body))(share)] for name, body in (
        ("hybrid", "hybrid: {stages: 2, microbatches: 4}"), ("by size", "data: {micro_batch: 4}"), ("whole", ""))}
    assert sizes == {"hybrid": [3, 3, 2, 2], "by size": [4, 4, 2], "whole": [10]}


@given(st.integers(1, 200), st.integers(1, 6), st.integers(1, 9))
def test_fewer_workers_have_more_micro_batches_and_no_larger_ones(batch, workers, microbatches):
    """What a device has memory for must not depend on who is still there."""
    values = {"task": {"target": "t:T"}, "data": {"global_batch": batch}, "launch": {"workers": workers},
              "hybrid": {"stages": 2, "microbatches": microbatches}}
    cut = pieces(Job.model_validate(values))
    full = [[len(piece) for piece in cut(split(np.arange(batch), rank, workers))] for rank in range(workers)]
    assert all(len(sizes) == min(microbatches, sum(sizes)) for sizes in full)
    for left in range(1, workers):
        sizes = [len(piece) for piece in cut(split(np.arange(batch), 0, left))]
        assert max(sizes) <= max(map(max, filter(None, full))) and len(sizes) >= min(microbatches, sum(sizes))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_sample_is_used_once_whatever_the_number_of_replicas(job, size):
    """23 samples in batches of 5, each share in up to 3 micro-batches: the last step has fewer samples than those."""
    sampler, source = GlobalSampler(23, 5, seed=1), ArraySource(np.arange(23))
    cut, used = pieces(job("hybrid: {stages: 2, microbatches: 3}")), []
    for rank in range(size):
        for step in feed(sampler, Loader(source), Position(), rank=rank, size=size, pieces=cut, steps=5):
            start, stop = bounds(step.total, rank, size)
            assert sum(step.counts) == len(step.indices) == stop - start
            assert len(step.batches) == len(step.counts) == min(3, stop - start)
            used += step.indices.tolist()
    assert sorted(used) == list(range(23))
