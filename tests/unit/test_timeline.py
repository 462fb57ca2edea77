"""The timeline: what is recorded, that it is a sound Chrome trace, and that all ranks gather it alike."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtrain import timeline, tracing
from hvtrain.config import Job
from hvtrain.engine.reductions import Span
from hvtrain.engine.world import SoloWorld
from hvtrain.errors import RoundBroken
from hvtrain.report import trace, wording
from hvtrain.session import QuietSession
from hvtrain.timeline import Timeline
from hvtrain.tracing import COMPUTE, QUEUE, WAIT, Mark
from tests.support import traces


def job(path, steps="3-4", **sections):
    return Job.model_validate({"task": {"target": "t:T"}, "run": {"dir": str(path)}, "log": {"timeline": steps},
                               **sections})


# Marks ---------------------------------------------------------------------------------------------------
def test_nothing_is_recorded_unless_somebody_listens():
    assert tracing.span(COMPUTE, "forward") is tracing.span(WAIT, "bucket", 3)
    tracing.queued("grad.0", 0)
    marks = []
    tracing.listen(marks)
    try:
        with pytest.raises(RoundBroken), tracing.span(WAIT, "bucket", 3):
            tracing.queued("grad.4", 4)
            raise RoundBroken("gone")
    finally:
        tracing.listen(None)
    tracing.queued("grad.5", 5)
    assert [mark[:3] for mark in marks] == [(QUEUE, "grad.4", 4), (WAIT, "bucket", 3)]
    assert marks[1].begin <= marks[0].begin <= marks[1].end


def test_the_offset_leads_to_the_wall_clock():
    assert abs(time.monotonic() + tracing.wall_offset() - time.time()) < 0.01


# Slices --------------------------------------------------------------------------------------------------
def test_a_bucket_is_queued_and_then_on_the_wire_and_its_codec_is_drawn():
    marks = [Mark(QUEUE, "grad.0", 0, 1.0, 1.0), Mark(QUEUE, "grad.1", 1, 2.0, 2.0), Mark(WAIT, "bucket", 0, 3.0, 4.5),
             Mark(WAIT, "bucket", 1, 4.5, 6.5), Mark(WAIT, "reductions", None, 3.0, 6.5)]
    sums = [Span("grad.0", 0.1, 0.2, 0.0, 8),  # of the step before
            Span("grad.0", 1.5, 4.0, 0.5, 8), Span("other", 1.6, 1.7, 0.0, 8), Span("grad.1", 4.0, 6.0, 9.0, 16)]
    found = [one[:4] for one in trace.drawn(marks, sums) if one.row.startswith((trace.FLIGHTS, trace.CODEC))]
    assert found == [
        ("buckets in flight", "bucket 0", 1.0, 4.0), ("buckets in flight", "queued", 1.0, 1.5),
        ("buckets in flight", "on the wire", 1.5, 4.0),
        ("buckets in flight 2", "bucket 1", 2.0, 6.0), ("buckets in flight 2", "queued", 2.0, 4.0),
        ("buckets in flight 2", "on the wire", 4.0, 6.0),
        ("codec", "bucket 0", 1.5, 2.0), ("codec", "bucket 1", 4.0, 6.0)]
    whole = next(one for one in trace.drawn(marks, sums) if one[:2] == ("buckets in flight 2", "bucket 1"))
    assert whole.args == {"bytes": 16, "codec_ms": 9000.0}


def test_a_bucket_that_the_engine_did_not_measure_is_in_flight_until_the_wait_for_it_was_over():
    marks = [Mark(QUEUE, "grad.0", 0, 1.0, 1.0), Mark(QUEUE, "grad.1", 1, 1.5, 1.5), Mark(WAIT, "bucket", 0, 2.0, 3.0)]
    found = [one[:4] for one in trace.drawn(marks, []) if one.row != WAIT]
    assert found == [("buckets in flight", "bucket 0", 1.0, 3.0), ("buckets in flight 2", "bucket 1", 1.5, 1.5)]


moments = st.floats(0, 10, allow_nan=False)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(moments, st.floats(0, 3), st.floats(0, 3), st.floats(0, 5)), max_size=12),
       st.lists(moments, min_size=2, max_size=12), st.floats(-1e6, 1.8e9))
def test_whatever_overlaps_the_trace_is_sound(buckets, edges, offset):
    """Buckets may overlap in any way; what the main thread does comes one after the other."""
    edges.sort()
    marks = [Mark(COMPUTE, "forward", n, *pair) for n, pair in enumerate(zip(edges, edges[1:]))]
    marks.append(Mark(WAIT, "bucket", 0, edges[0], edges[1]))
    marks.append(Mark(WAIT, "reductions", None, edges[0], edges[-1]))  # ends, and so is appended, after its parts
    marks += [Mark(QUEUE, f"grad.{n}", n, begin, begin) for n, (begin, *_) in enumerate(buckets)]
    sums = [Span(f"grad.{n}", begin + queued, begin + queued + wire, codec, 4)
            for n, (begin, queued, wire, codec) in enumerate(buckets)]
    slices = [trace.Slice(trace.STEPS, "step 7", edges[0], edges[-1], {}), *trace.drawn(marks, sums)]
    rank = {"host": "h", "slices": trace.packed(slices, offset)}
    content = json.loads(json.dumps(trace.merged([rank, {"host": "i", "slices": []}, rank], "7")))
    found = traces.checked(content)
    assert list(found) == ["rank 0 on h", "rank 1 on i", "rank 2 on h"] and found["rank 0 on h"] == found["rank 2 on h"]
    names = [one.name for row in found["rank 0 on h"].values() for one in row]
    assert sum(name.startswith("bucket ") for name in names) >= len(buckets)
    assert min((e["ts"] for e in content["traceEvents"] if e["ph"] == "X")) == 0


def test_every_rank_has_every_row_in_one_order():
    found = traces.checked(trace.merged([{"host": "a", "slices": [["buckets in flight 2", "x", 5, 6, {}]]},
                                         {"host": "b", "slices": []}], "1"))
    assert list(found["rank 1 on b"]) == ["steps", "compute", "wait", "buckets in flight", "codec"]
    assert list(found["rank 0 on a"]) == ["steps", "compute", "wait", "buckets in flight", "buckets in flight 2",
                                          "codec"]


# The timeline among ranks ----------------------------------------------------------------------------------
class Crowd:
    """What several ranks share with each other; a rank in ``dying`` is gone before the exchange of that name."""

    def __init__(self, size, dying=None):
        self.barrier, self.values, self.dying = threading.Barrier(size), {}, dying or {}
        self.size, self.log = size, []


class Rank:
    """One of the ranks: adapter, world and session at once, and its timeline."""

    local_rank, round, sums = 0, 1, ()

    def __init__(self, number, directory, **more):
        self.rank, self.told, self.recording = number, [], []
        self.timeline = Timeline(job(directory, **more), self, self)

    def meet(self, crowd):
        self.crowd, self.size = crowd, crowd.size

    def share(self, value, root, name):
        crowd = self.crowd
        if crowd.dying.get(self.rank) == name:
            crowd.barrier.abort()
            raise SystemExit
        if self.rank == root:
            crowd.values[name] = json.dumps(value)
        try:
            crowd.barrier.wait(5)
        except threading.BrokenBarrierError:
            raise RoundBroken("gone") from None
        crowd.log.append(name)
        return json.loads(crowd.values[name])

    def record(self, on):
        self.recording.append(on)

    def spans(self):
        return []

    def event(self, name, step, **values):
        self.told.append((name, step, values))

    def take(self, number, world=None):
        with self.timeline.step(number, world or self):
            with tracing.span(COMPUTE, "forward", 0):
                pass


def settle(ranks, step, last=False, dying=None):
    """All ranks settle ``step`` at once; what each ended with."""
    ends = {}
    crowd = Crowd(len(ranks), dying)

    def main(rank):
        try:
            rank.timeline.settle(step, rank, last=last)
            ends[rank.rank] = "settled"
        except RoundBroken:
            ends[rank.rank] = "broken"
        except SystemExit:
            ends[rank.rank] = "dead"

    for rank in ranks:
        rank.meet(crowd)
    threads = [threading.Thread(target=main, args=(rank,)) for rank in ranks]
    [thread.start() for thread in threads]
    [thread.join(10) for thread in threads]
    assert not any(thread.is_alive() for thread in threads)
    return [ends[rank.rank] for rank in ranks]


def group(directory, size=2, **more):
    ranks = [Rank(number, directory, **more) for number in range(size)]
    crowd = Crowd(size)
    for rank in ranks:
        rank.meet(crowd)
    return ranks


def written(directory):
    found = traces.checked(json.loads((directory / "timeline.json").read_text()))
    return [[one.name for one in rows["steps"]] for rows in found.values()]


def test_the_wanted_steps_of_all_ranks_are_written_after_the_last_of_them(tmp_path):
    ranks = group(tmp_path)
    for step in range(1, 7):
        for rank in ranks:
            rank.take(step)
        assert settle(ranks, step, last=step == 6) == ["settled"] * 2
        assert (tmp_path / "timeline.json").exists() == (step >= 4)
    assert written(tmp_path) == [["step 3", "step 4"]] * 2
    path = str(tmp_path / "timeline.json")
    assert ranks[0].told == [("timeline", 4, {"steps": "3-4", "path": path})] and not ranks[1].told
    assert path in wording.line(*ranks[0].told[0])
    assert ranks[0].recording == ranks[1].recording == [True, False]


def test_a_training_that_ends_within_the_range_leaves_what_there_is(tmp_path):
    ranks = group(tmp_path, steps="2-100")
    for step in (1, 2, 3):
        [rank.take(step) for rank in ranks]
    settle(ranks, 3, last=True)
    assert written(tmp_path) == [["step 2", "step 3"]] * 2


@pytest.mark.parametrize("step, reason", [(2, "ended with step 2"), (9, "went on from a later one")])
def test_a_range_that_was_never_reached_is_told_of(tmp_path, step, reason):
    ranks = group(tmp_path)
    assert settle(ranks, step, last=True) == ["settled"] * 2
    (told,), nothing = ranks[0].told, ranks[1].told
    assert not nothing and not list(tmp_path.iterdir())
    assert reason in wording.line(*told) and "3-4" in wording.line(*told)


def test_who_did_not_hear_that_it_was_settled_forgets_as_well(tmp_path):
    ranks = group(tmp_path)
    [rank.take(4) for rank in ranks]
    assert settle(ranks, 4, dying={0: "timeline.written"}) == ["dead", "broken"]
    assert ranks[1].timeline._slices and ranks[1].recording == [True]
    ranks[1].take(5)  # a third rank had heard it
    assert not ranks[1].timeline._slices and ranks[1].recording == [True, False]


def test_there_is_room_for_so_many_slices_only_and_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(timeline, "MOST", 8)  # two for each step of each of two ranks
    ranks = group(tmp_path, steps="1-5")
    for step in range(1, 6):
        [rank.take(step) for rank in ranks]
    settle(ranks, 5)
    assert written(tmp_path) == [["step 1", "step 2"]] * 2 and ranks[1].recording == [True, False]
    assert "cut short: there is room for 8 slices" in wording.line(*ranks[0].told[0])


def test_no_timeline_asked_for_costs_nothing(tmp_path):
    ranks = group(tmp_path, steps=None)
    with ranks[0].timeline.step(3, ranks[0]) as nothing:
        assert nothing is None and tracing._marks is None
    assert settle(ranks, 3, last=True) == ["settled"] * 2 and not ranks[0].crowd.log and not ranks[0].recording


@pytest.mark.parametrize("where", ["timeline.0", "timeline.1", "timeline.2", "timeline.written"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_round_that_breaks_in_the_gathering_is_gathered_again(tmp_path, victim, where):
    ranks = group(tmp_path, size=3)
    for step in (3, 4):
        [rank.take(step) for rank in ranks]
    ends = settle(ranks, 4, dying={victim: where})
    assert ends == ["dead" if n == victim else "broken" for n in range(3)]
    ranks[victim] = Rank(victim, tmp_path)  # a replacement: it has recorded nothing
    assert settle(ranks, 4) == ["settled"] * 3
    assert written(tmp_path) == [[] if n == victim else ["step 3", "step 4"] for n in range(3)]


def test_who_has_heard_that_the_file_is_there_can_settle_the_step_for_all(tmp_path):
    """Rank 0 says so only after writing: the file is there whoever hears it, and it is whole."""
    ranks = group(tmp_path)
    [rank.take(4) for rank in ranks]
    said = []

    def share(value, root, name):
        if name == "timeline.written":
            said.append((tmp_path / "timeline.json").exists())
        return Rank.share(ranks[0], value, root, name)

    ranks[0].share = share
    settle(ranks, 4)
    assert said == [True] and written(tmp_path) == [["step 4"]] * 2


def test_a_step_that_was_broken_off_is_called_so_and_done_again_in_another_round(tmp_path):
    ranks = group(tmp_path)
    for rank in ranks:
        with pytest.raises(RoundBroken), rank.timeline.step(3, rank), tracing.span(COMPUTE, "forward", 0):
            raise RoundBroken("gone")
    assert tracing._marks is None
    other = SimpleNamespace(rank=0, size=2, record=lambda on: again.append(on), spans=lambda: [])
    again = []
    ranks[0].round = 2
    ranks[0].take(3, other)
    ranks[0].take(4, other)
    assert again == [True]  # another world has to be told, once
    settle(ranks, 4)
    assert written(tmp_path) == [["step 3, broken off", "step 3", "step 4"], ["step 3, broken off"]]
    steps = [e for e in json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
             if e["name"].startswith("step") and e["pid"] == 1]
    assert [e["args"] for e in steps] == [{"rank": 0, "size": 2, "round": n} for n in (1, 2, 2)]


def test_nothing_recorded_leaves_an_older_file_alone(tmp_path):
    """Resumed where the step was taken and only what follows it was left to do."""
    (tmp_path / "timeline.json").write_text("older")
    ranks = group(tmp_path)
    assert settle(ranks, 4) == ["settled"] * 2
    assert (tmp_path / "timeline.json").read_text() == "older" and not ranks[0].told


def test_a_file_that_cannot_be_written_does_not_end_the_training(tmp_path):
    ranks = group(tmp_path / "file" / "run")
    (tmp_path / "file").write_text("not a directory")
    [rank.take(4) for rank in ranks]
    assert settle(ranks, 4) == ["settled"] * 2
    assert "cannot be written" in wording.line(*ranks[0].told[0])
    ranks[0].told.clear()
    settle(ranks, 9, last=True)
    assert not ranks[0].told  # once is enough


def test_one_process_alone_has_nothing_in_flight(tmp_path):
    class Session(QuietSession):
        def event(self, name, step, **values):
            told.append(name)

    told = []
    adapter = SimpleNamespace(share=lambda value, root, name: value)
    alone, world = Timeline(job(tmp_path, 1), adapter, Session()), SoloWorld()
    with alone.step(1, world):
        tracing.queued("grad.0", 0)
        with tracing.span(COMPUTE, "backward", 0):
            pass
    alone.settle(1, world, last=False)
    (rows,) = traces.checked(json.loads((tmp_path / "timeline.json").read_text())).values()
    assert [one.name for one in rows["compute"]] == ["backward"] and not rows["buckets in flight"]
    assert told == ["timeline"]
