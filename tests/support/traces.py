"""Reading a Chrome trace as strictly as a viewer would."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple


class Found(NamedTuple):
    name: str
    begin: int
    end: int
    args: Mapping[str, Any]


def checked(content: Mapping[str, Any]) -> dict[str, dict[str, list[Found]]]:
    """Slices by process name and row name. Fails where the trace is not sound: times, names, order, nesting."""
    processes, rows, found = {}, {}, {}
    for event in content["traceEvents"]:
        pid, tid = event["pid"], event["tid"]
        assert type(pid) is int and type(tid) is int and pid > 0, event
        if event["ph"] == "M":
            if event["name"] == "process_name":
                assert pid not in processes
                processes[pid] = event["args"]["name"]
            elif event["name"] == "thread_name":
                assert tid not in rows, "thread ids are unique in the whole file"
                rows[tid], found[tid] = (pid, event["args"]["name"]), []
        else:
            assert event["ph"] == "X" and type(event["ts"]) is int and type(event["dur"]) is int, event
            assert event["ts"] >= 0 and event["dur"] >= 0 and event["name"] and rows[tid][0] == pid, event
            found[tid].append(Found(event["name"], event["ts"], event["ts"] + event["dur"], event["args"]))
    for slices in found.values():
        nested(slices)
    return {name: {row: found[tid] for tid, (owner, row) in rows.items() if owner == pid}
            for pid, name in processes.items()}


def nested(slices: list[Found]) -> None:
    """Fails unless each slice lies within the one before it or after it, and comes after the one that it lies in."""
    around: list[Found] = []
    before = 0
    for one in slices:
        assert one.begin >= before, (one, "is out of order")
        before = one.begin
        while around and around[-1].end <= one.begin:
            around.pop()
        assert not around or one.end <= around[-1].end, (one, "overlaps", around[-1])
        around.append(one)
