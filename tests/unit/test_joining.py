"""Agents that bring nothing but the job's token: names, versions, tokens, code; and a coordinator that is asked."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from hvtrain.cli.agent import agent as command
from hvtrain.control import asking, auth, guests, messages as m, versions
from hvtrain.control.guests import Guests
from hvtrain.errors import CoordinatorGone, EnvironmentNotReady, TokenRefused, UsageError
from hvtrain.launch import network, tokens
from hvtrain.launch.joining import check_code
from tests.support.control import DIGEST, HELLO, expect, get, run, until

ASK = m.JobAsk(host="h", machine="m", slots=2, versions={"hvtrain": "1"})


def offer(asked: m.JobAsk, agent: str, host: str) -> m.JobGiven:
    if asked.versions != ASK.versions:
        raise UsageError(f"{asked.host} has other versions")
    return m.JobGiven(agent=agent, host=host, boot={"start": 3}, job_digest=DIGEST, cwd="/", code={})


# Asking ---------------------------------------------------------------------------------------------------
def test_an_agent_asks_and_comes_again_with_what_it_is_given():
    async def scenario(job):
        given = await asking.ask(job.address, ASK)
        assert (given.agent, given.host, given.boot, given.job_digest) == ("joined@h", "h", {"start": 3}, DIGEST)
        assert not job.state.agents, "who asks is no agent yet"
        other = await asking.ask(job.address, ASK)
        assert other.agent == "joined2@h", "the first name is promised"
        await job.link(HELLO.model_copy(update={"agent": given.agent, "host": given.host}))
        await until(lambda: "joined@h" in job.state.agents)

    run(scenario, offer=offer)


def test_who_cannot_take_part_is_told_why():
    async def scenario(job):
        with pytest.raises(UsageError, match="does not take this agent: h has other versions"):
            await asking.ask(job.address, ASK.model_copy(update={"versions": {}}))
        assert (await asking.ask(job.address, ASK)).agent == "joined@h", "and no name was wasted"
        with pytest.raises(TokenRefused):
            await asking.ask(replace(job.address, token=auth.new_token()), ASK)
        with pytest.raises(EnvironmentNotReady, match="did not say what its job is"):
            await asking.ask(job.client, ASK)  # a person's commands may not
        with pytest.raises(CoordinatorGone):
            await asking.ask(replace(job.address, port=1), ASK)

    run(scenario, offer=offer)


def test_a_job_that_takes_no_others_says_so():
    async def scenario(job):
        with pytest.raises(UsageError, match="no other agents"):
            await asking.ask(job.address, ASK)

    run(scenario)


def test_who_asks_may_say_nothing_else():
    async def scenario(job):
        link = await job.link(ASK)
        await expect(link, m.JobGiven)
        await link.send(m.Exited(worker="w0", code=0, signal=9))
        assert await get(link) is None
        assert not job.state.agents

    run(scenario, offer=offer)


def test_an_agent_of_a_former_start_is_not_taken_for_one_of_this():
    """It has to ask again: its workers would write into the run as those of the start before."""
    async def scenario(job):
        job.coordinator._digest = "d:2"
        link = await job.link(HELLO.model_copy(update={"job_digest": "d:1"}))
        assert await get(link) is None, "it is not told that the job is over"
        link = await job.link(HELLO.model_copy(update={"job_digest": "e:2"}))
        assert (await expect(link, m.End)).exit_code == 2
        await job.link(HELLO.model_copy(update={"job_digest": "d:2"}))
        await until(lambda: job.state.agents)

    run(scenario)


# Names ----------------------------------------------------------------------------------------------------
def test_two_machines_of_one_name_are_told_apart():
    book = Guests(lambda name: False, offer, {"node": "here"})
    assert [book.host("node", machine) for machine in ("here", "there", "there", "elsewhere")] == [
        "node", "node#2", "node#2", "node#3"]
    assert guests.machine() == guests.machine()


def test_names_of_agents():
    there, clock = {"x@h"}, [0.0]
    book = Guests(there.__contains__, offer, {}, lambda: clock[0])
    assert [book.agent("", "h"), book.agent("", "h"), book.agent("", "i"), book.agent("x", "i")] == [
        "joined@h", "joined2@h", "joined@i", "x@i"]
    with pytest.raises(UsageError, match="an agent named 'x' on h is in this job already"):
        book.agent("x", "h")
    for name in ("agent", "0001"):
        with pytest.raises(UsageError, match="launchers"):
            book.agent(name, "h")
    clock[0] += guests.PROMISED_SECONDS + 1
    assert book.agent("", "h") == "joined@h", "whom it was promised to has not come"


# Versions and code ----------------------------------------------------------------------------------------
OURS = {"python": "3.11", "hvtrain": "1", "source": "aa", "torch": "2.13.0", "tensorflow": "2.21.0", "keras": "3.15.1",
        "numpy": "2.0", "engine": "0.28.1 ee"}


@pytest.mark.parametrize(("framework", "change", "found"), [
    ("torch", {}, []),
    ("torch", {"tensorflow": "1", "keras": "1"}, []),
    ("torch", {"torch": "2.12.0"}, ["torch 2.12.0 instead of 2.13.0"]),
    ("keras", {"torch": "2.12.0", "keras": None}, ["keras missing instead of 3.15.1"]),
    ("torch", {"engine": "0.28.1 ff", "python": "3.12"},
     ["python 3.12 instead of 3.11", "engine 0.28.1 ff instead of 0.28.1 ee"]),
    ("torch", {"source": "bb"}, ["another source of hvtrain 1 (bb instead of aa)"]),
    ("torch", {"source": "bb", "hvtrain": "2"}, ["hvtrain 2 instead of 1"]),
])
def test_versions_that_cannot_train_together_are_named(framework, change, found):
    theirs = {key: value for key, value in {**OURS, **change}.items() if value is not None}
    assert versions.differences(framework, theirs, OURS) == found


def test_what_is_installed_here_can_train_together_with_itself():
    own = versions.own()
    assert own["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}" and len(own["source"]) == versions.DIGITS
    assert versions.differences("torch", own, versions.own()) == []


def test_other_code_is_named(tmp_path):
    (tmp_path / "task.py").write_text("a = 1\n")
    from hvtrain.launch.hostcheck import code

    standard = code(str(tmp_path), str(tmp_path / "run"))
    check_code(standard, str(tmp_path), str(tmp_path / "run"))
    with pytest.raises(UsageError, match="--code DIRECTORY"):
        check_code(standard, str(tmp_path / "nowhere"), str(tmp_path / "run"))
    (tmp_path / "task.py").write_text("a = 2\n")
    with pytest.raises(UsageError, match="task.py is another one, more.py is missing"):
        check_code({**standard, "more.py": "0"}, str(tmp_path), str(tmp_path / "run"))


# Networks -------------------------------------------------------------------------------------------------
def test_the_interface_that_others_reach_this_host_by(monkeypatch):
    found = {"lo": ["127.0.0.1", "::1"], "usb0": ["fe80::1"], "eth0": ["10.0.0.1", "fe80::2"]}
    monkeypatch.setattr(network, "addresses", lambda: found)
    assert network.outward() == "eth0", "no default route leads to any of these: the first that is of use"
    assert network.own("10.0.0.1") == ("eth0", "10.0.0.1") and network.own("::1") == ("lo", "::1")
    with pytest.raises(EnvironmentNotReady, match=r"10.0.0.2 \(10.0.0.2\) is not this host, .*10.0.0.1"):
        network.own("10.0.0.2")
    del found["eth0"]
    assert network.outward() == "lo"


# Tokens ---------------------------------------------------------------------------------------------------
@pytest.fixture
def token_file(tmp_path, monkeypatch):
    monkeypatch.delenv(tokens.VARIABLE, raising=False)
    path = tmp_path / "token"
    path.write_text(f"{'k' * 32}\n")
    path.chmod(0o600)
    return path


def test_a_token_comes_from_a_file_or_else_from_the_environment(token_file, monkeypatch):
    assert tokens.given(None) is None and tokens.given(str(token_file)) == "k" * 32
    monkeypatch.setenv(tokens.VARIABLE, "e" * 40)
    assert tokens.given(str(token_file)) == "k" * 32
    monkeypatch.setenv(tokens.VARIABLE, "e" * 40)
    assert tokens.given(None) == "e" * 40
    assert tokens.VARIABLE not in os.environ, "no worker inherits it"


@pytest.mark.parametrize(("text", "message"), [
    ("short", "has 5 characters, and at least 32 are needed"), ("", "has 0 characters"),
    ("k" * 20 + " " + "k" * 20, "one line"), ("k" * 40 + "\n" + "k" * 40, "one line"), ("k" * 2000, "one line"),
])
def test_what_is_no_token_is_refused(token_file, text, message):
    token_file.write_text(text)
    with pytest.raises(UsageError, match=message):
        tokens.given(str(token_file))


def test_a_token_that_others_can_read_is_refused(token_file):
    token_file.chmod(0o640)
    with pytest.raises(UsageError, match=r"mode 0640.*chmod 600"):
        tokens.given(str(token_file))
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        tokens.given(str(token_file) + "x")


def test_a_drawn_token_is_kept_for_this_user_alone_until_the_jobs_end(tmp_path):
    path = tmp_path / "run" / tokens.FILE
    tokens.keep(path, "one")
    assert path.stat().st_mode & 0o777 == 0o600 and tokens.kept(path) == "one"
    tokens.forget(path, "other")
    assert tokens.kept(path) == "one"
    tokens.forget(path, "one")
    assert tokens.kept(path) is None


@pytest.mark.parametrize(("options", "message"), [
    (["--coordinator", "h"], "--coordinator expects HOST:PORT"),
    (["--coordinator", "h:1", "--slots", "0"], "--slots expects a number from 1 to 4096, or auto"),
    (["--coordinator", "h:1", "--wait", "soon"], "--wait: expected a time"),
    (["--coordinator", "h:1"], "the job's token is needed"),
])
def test_the_command_says_what_is_wrong_with_it(token_file, options, message):
    result = CliRunner().invoke(command, options)
    assert isinstance(result.exception, UsageError) and message in str(result.exception)


def test_an_agent_that_finds_nobody_says_how_long_it_has_looked(token_file, capfd):
    result = CliRunner().invoke(command, ["--coordinator", "127.0.0.1:1", "--token-file", str(token_file), "--wait", "100ms"])
    assert "there was no coordinator at 127.0.0.1:1 within 0.1 s (nobody listens there)" in str(result.exception)
    assert "waiting for the coordinator at 127.0.0.1:1" in capfd.readouterr().err + result.output
