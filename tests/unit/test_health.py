"""Signs of life in files, and the command that reads them."""

from __future__ import annotations

import asyncio
import logging

import pytest
from click.testing import CliRunner

from hvtrain.cli.health import health as command
from hvtrain.control import health


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(health.VARIABLE, str(tmp_path / "signs"))
    return tmp_path / "signs"


def check(code):
    result = CliRunner().invoke(command)
    assert result.exit_code == code, result.output
    return result.output


def test_nothing_is_written_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv(health.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    health.Signs("agent").give("well")
    asyncio.run(asyncio.wait_for(health.Signs("agent").keep(lambda: "well"), 5))
    assert not list(tmp_path.iterdir())


def test_who_gives_signs_is_well_until_they_are_old(place, monkeypatch):
    assert "connected" in check(1)  # nobody yet
    coordinator, agent = health.Signs("coordinator"), health.Signs("agent")
    coordinator.give("serves 2 agents")
    agent.give("is connected")
    assert "serves 2 agents" in check(0) and "is connected" in check(0)
    then = health._now()
    monkeypatch.setattr(health, "_now", lambda: then + health.GOOD_SECONDS + 1)
    coordinator.give("serves 1 agents")
    text = check(1)  # one of them gives no more
    assert "ok   coordinator" in text and "BAD  agent" in text
    agent.end()
    assert "agent:" not in check(0)  # it has ended in order


def test_a_sign_of_another_life_of_the_machine_is_none(place, monkeypatch):
    health.Signs("agent").give("is connected")
    monkeypatch.setattr(health, "_now", lambda: 1.0)
    check(1)


def test_a_damaged_sign_is_a_bad_one(place):
    health.Signs("agent").give("well")
    (place / "agent").write_text("{")
    assert "cannot be read" in check(1)


def test_signs_are_given_as_long_as_the_loop_turns(place, monkeypatch):
    monkeypatch.setattr(health, "SECONDS", 0.01)
    given = []

    async def work():
        task = asyncio.create_task(health.Signs("agent").keep(lambda: given.append(1) or "well"))
        while len(given) < 3:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(work(), 10))
    assert [sign.role for sign in health.read(place)] == ["agent"]


def test_a_directory_that_cannot_be_written_is_complained_of_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(health.VARIABLE, str(tmp_path / "file"))
    signs = health.Signs("agent")
    with caplog.at_level(logging.WARNING):
        signs.give("well")
        signs.give("well")
    assert len(caplog.records) == 1 and str(tmp_path / "file") in caplog.text


def test_the_command_says_what_to_set(monkeypatch):
    monkeypatch.delenv(health.VARIABLE, raising=False)
    result = CliRunner().invoke(command)
    assert health.VARIABLE in str(result.exception)
