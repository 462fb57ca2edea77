"""Files with secrets are written for one user alone, and believed only if nobody else could have written them."""

from __future__ import annotations

import os
import stat

import pytest

from hvtrain.launch import tokens
from hvtrain.report.rundir import RunDirectory, write_atomically


def test_a_token_is_kept_for_this_user_alone(tmp_path):
    path = tmp_path / "run" / ".token"
    tokens.keep(path, "t" * 64)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and tokens.kept(path) == "t" * 64
    tokens.forget(path, "another")
    assert path.exists()
    tokens.forget(path, "t" * 64)
    assert not path.exists() and tokens.kept(path) is None


@pytest.mark.parametrize("spoil", [
    lambda path: path.chmod(0o622), lambda path: path.chmod(0o660),
    lambda path: (path.rename(path.with_name("x")), path.symlink_to(path.with_name("x"))),
    lambda path: (path.unlink(), os.mkfifo(path, 0o600)), lambda path: (path.unlink(), path.mkdir())],
    ids=["others write", "a group writes", "a link", "a pipe", "a directory"])
def test_a_token_that_others_could_have_laid_there_is_none(tmp_path, spoil):
    """Who lays a token of his own there would have agents obey a coordinator of his."""
    path = tmp_path / ".token"
    tokens.keep(path, "t" * 64)
    spoil(path)
    assert tokens.kept(path) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_nor_is_another_users(tmp_path, caplog):
    path = tmp_path / ".token"
    tokens.keep(path, "t" * 64)
    os.chown(path, 12345, 12345)
    assert tokens.kept(path) is None and "is left alone" in caplog.text


def test_nothing_is_written_through_a_link_that_somebody_has_laid(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "status.json"
    victim.write_text("mine")
    (tmp_path / f".status.json.{os.getpid()}").symlink_to(victim)
    write_atomically(path, "{}")
    assert victim.read_text() == "mine" and path.read_text() == "{}"
    (tmp_path / "control.json").symlink_to(victim)
    RunDirectory(tmp_path).announce({"token": "t"})
    assert victim.read_text() == "mine" and stat.S_IMODE((tmp_path / "control.json").stat().st_mode) == 0o600
