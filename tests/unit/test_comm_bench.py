"""What benchmarks/comm.py makes of what its ranks have measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from reductions import FEWEST, MOST, collected, operations, seconds, summary, table  # noqa: E402


def finding(rank, stamps, way="fp16", mb=1.0, digest="a", error=None):
    return {"event": "reduced", "rank": rank, "mb": mb, "way": way, "stamps": stamps, "digest": digest,
            "error": 1e-3 if rank == 0 else error}


def test_an_operation_lasts_from_the_last_to_begin_to_the_last_to_end():
    early, late = [(1.0, 1.5), (2.0, 2.4)], [(1.2, 1.4), (1.9, 2.7)]
    assert seconds([early, late]) == pytest.approx([0.3, 0.7])


def test_small_buffers_are_reduced_more_often_than_large_ones_but_within_bounds():
    assert [operations(mb, 200) for mb in (0.1, 1, 10, 100)] == [MOST, MOST, 20, FEWEST]


def test_summary_takes_the_median_operation_and_compares_all_ranks_bits():
    stamps = [(0, 1), (2, 3), (4, 9)]
    findings = [finding(0, stamps), finding(1, stamps), {"event": "steady", "rank": 0}]
    assert summary("hvtrain tcp", 2, findings) == {
        (1.0, "hvtrain tcp fp16"): {"seconds": 1, "error": 1e-3, "identical": True}}
    findings[1]["digest"] = "b"
    assert not summary("hvtrain", 2, findings)[1.0, "hvtrain fp16"]["identical"]


def test_summary_wants_every_rank():
    with pytest.raises(ValueError, match="gloo fp16, 1 MB: 1 of 2 ranks"):
        summary("gloo", 2, [finding(0, [(0, 1)])])


def test_of_several_runs_the_worst_check_counts():
    runs = [{"seconds": 3.0, "error": 1e-3, "identical": True}, {"seconds": 1.0, "error": 2e-3, "identical": False},
            {"seconds": 2.0, "error": 1e-3, "identical": True}]
    found = collected(runs)
    assert (found["median"], found["min"], found["max"], found["error"]) == (2.0, 1.0, 3.0, 2e-3)
    assert not found["identical"]


def test_the_table_divides_a_peers_time_by_ours():
    def row(seconds, identical=True):
        return collected([{"seconds": seconds, "error": 1e-3, "identical": identical}])

    found = {"hvtrain fp16": row(0.1), "horovod none": row(0.2), "horovod fp16": row(0.5, False)}
    lines = table(10, 2, found).splitlines()
    assert lines[0] == "10 MB, 2 ranks"
    assert lines[2].split() == ["hvtrain", "fp16", *3 * ["100.00"], "1.0e-03", "yes", "2.00x", "5.00x", "-"]
    assert lines[4].split()[-1] == "NO"
