"""Messages are typed and small: whatever else comes is refused with a ProtocolError."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, strategies as st

from hvtrain.control import messages as m
from hvtrain.errors import ProtocolError

SEAT = m.Seat(round=1, rank=0, size=2, local_rank=0, local_size=2, cross_rank=0, cross_size=1, host="h",
              rendezvous_host="127.0.0.1", rendezvous_port=1, interface="lo")
INBOUND = [
    m.AgentHello(agent="a", host="h", slots=2, pid=1, version="0", job_digest="d"),
    m.JobAsk(agent="a", host="h", machine="m", slots=1, versions={"hvtrain": "1"}),
    m.Exited(worker="w0", code=0, signal=9), m.LoadFailed(exit_code=1, reason="r"), m.Notice(event="e", text="t"),
    m.StopAsked(signal=15), m.WorkerHello(worker="w0", pid=1, again=True),
    m.Ready(outline={"steps": 3}, step=7, round=2, reason="r"), m.Formed(round=2, step=7, seconds={"agree": 0.1}),
    m.Stepped(round=2, step=8), m.Leaving(), m.Report(kind="train", step=1, values={"loss": 0.5}),
    m.Finished(step=1, summary={"best": None}), m.Failed(exit_code=1, reason="r", lost_peer=True),
    m.Beat(step=4, ticks=9, waiting=True, slowest=0.2), m.ClientHello(command="ps"), m.Query(), m.Scale(workers=3),
]
OUTBOUND = [
    m.JobGiven(agent="a@h", host="h", boot={"start": 1}, job_digest="d", cwd="/", code={"a.py": "0"}), m.Start(worker="w0", rank=0), m.Kill(worker="w0"), m.Refused(reason="not reached"), m.End(exit_code=0), SEAT, m.Stop(signal=2), m.Pause(round=1),
    m.Cut(round=1, reason="r"), m.Dismiss(salvage=True), m.Heard(stamp=1.5),
    m.Overview(job={"size": 1}, agents=[], workers=[{"rank": None}]), m.Answer(accepted=False, text="t"),
]


def test_every_message_is_in_one_list_above():
    known = {type(message) for message in INBOUND + OUTBOUND}
    unions = (m.FromAgent, m.ToAgent, m.FromWorker, m.ToWorker, m.FromClient, m.ToClient)
    assert known == {kind for union in unions for kind in union.__args__}
    assert len({message.type for message in INBOUND + OUTBOUND}) == len(known)


@pytest.mark.parametrize("message", INBOUND, ids=lambda x: x.type)
def test_what_the_coordinator_may_hear_comes_back_equal_and_is_nothing_a_worker_may_hear(message):
    assert m.decode_inbound(m.encode(message)) == message
    with pytest.raises(ProtocolError):
        m.decode_outbound(m.encode(message))


@pytest.mark.parametrize("message", OUTBOUND, ids=lambda x: x.type)
def test_what_agents_workers_and_people_may_hear(message):
    assert m.decode_outbound(m.encode(message)) == message
    with pytest.raises(ProtocolError):
        m.decode_inbound(m.encode(message))


@pytest.mark.parametrize("text", [
    "", "{", "null", "[]", "3", '"beat"', "{}", '{"type": "nonsense"}', '{"type": "beat", "step": "x"}',
    '{"type": "beat", "step": -1}', '{"type": "beat", "step": 1e400}', '{"type": "beat", "step": 99999999999999999999}',
    '{"type": "beat", "slowest": NaN}', '{"type": "beat", "slowest": Infinity}', '{"type": "beat", "slowest": -1}',
    '{"type": "formed", "round": 0, "step": 1}', '{"type": "formed", "round": 1, "step": 1, "source": "air"}',
    '{"type": "formed", "round": 1, "step": 1, "seconds": {"agree": "long"}}', '{"type": "ready", "step": -2}',
    '{"type": "notice", "event": "round", "text": ""}',
    '{"type": "report", "kind": "event", "name": "ended", "step": 1}',
    '{"type": "ready", "outline": {"steps": "many"}}', '{"type": "ready", "outline": {"steps": [[]]}}',
    '{"type": "ready", "outline": {%s}}' % ", ".join(f'"{n}": 1' for n in range(99)),
    '{"type": "stop_asked", "signal": 99}', '{"type": "notice", "event": "%s", "text": ""}' % ("e" * 300),
    '{"type": "scale", "workers": 0}', '{"type": "scale", "workers": 1000000}', '{"type": "query", "what": "token"}',
    '{"type": "exited", "worker": "w0", "code": 0, "signal": 99999999999}',
    '{"type": "beat", "step": 1, "extra": 1}', '{"type": ["beat"], "step": 1}',
    '{"type": "report", "kind": "x", "step": 1}',
    '{"type": "agent_hello", "agent": "a", "host": "h", "slots": -1, "pid": 1, "version": "0", "job_digest": "d"}',
    '{"type": "agent_hello", "agent": "%s", "host": "h", "slots": 1, "pid": 1, "version": "0", "job_digest": "d"}'
    % ("a" * 201),
    *('{"type": "worker_hello", "worker": "%s", "pid": 1}' % name
      for name in ("../w0", "/etc/passwd", ".hidden", "w/0", "w\\\\0", "w0\\u0000", "w0\\u001b[2J", "w0\\n", "")),
    *('{"type": "job_ask", "agent": "%s", "host": "%s", "slots": 1}' % names
      for names in (("../a", "h"), ("a", "../h"), ("a\\u001b", "h"), ("a", "h\\r"), ("a", ""), ("a", "h" * 91))),
    b"\x80\x04\x95", b"\xff\xfe", "[" * 100_000,
])
def test_malformed(text):
    with pytest.raises(ProtocolError):
        m.decode_inbound(text)


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_garbage_never_raises_anything_else(data):
    with pytest.raises(ProtocolError):
        m.decode_inbound(data)


def test_oversized_is_refused_on_both_sides_before_it_is_parsed():
    with pytest.raises(ProtocolError, match="exceeds"):
        m.encode(m.Report(kind="event", step=1, values={"text": "x" * m.MAX_BYTES}))
    with pytest.raises(ProtocolError, match="at most"):
        m.decode_inbound(json.dumps({"type": "notice", "event": "e", "text": "x" * m.MAX_BYTES}))


def test_errors_do_not_carry_a_whole_message_into_the_log():
    with pytest.raises(ProtocolError) as error:
        m.decode_inbound(json.dumps({"type": "beat", "step": "x" * 100_000}))
    assert len(str(error.value)) < 5_000


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_arrive_as_they_were(value):
    came = m.decode_inbound(m.encode(m.Report(kind="eval", step=1, values={"loss": value}))).values["loss"]
    assert came == value or (math.isnan(came) and math.isnan(value))


def test_text_that_utf8_lacks_is_sent_all_the_same():
    """File names may hold such characters, and so may the message of an exception about them."""
    came = m.decode_inbound(m.encode(m.Failed(exit_code=1, reason="no file 'caf\udce9'")))
    assert came.reason == "no file 'caf?'"


def test_messages_cannot_be_changed():
    with pytest.raises(ValueError):
        INBOUND[0].slots = 3


@pytest.mark.parametrize("character", ["x", "\0", "\U0001f600"])
def test_an_exception_however_long_can_be_reported(character):
    """One that prints a whole array, say: its beginning and its end are what counts."""
    text = "ValueError: " + character * 2_000_000 + " at the end"
    came = m.decode_inbound(m.encode(m.Failed(exit_code=1, reason=text, traceback=text)))
    assert came.reason == came.traceback and len(came.reason) < m.MAX_WORDS
    assert came.reason.startswith("ValueError") and came.reason.endswith("at the end") and "left out" in came.reason
