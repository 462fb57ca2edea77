"""User code is found by name, and a wrong name is answered by what there is."""

from __future__ import annotations

import sys

import pytest

from hvtrain import target
from hvtrain.errors import UsageError, UserCodeError

SOURCE = """
COUNT = []
class Good:
    def __init__(self, width=3): self.width = width
    def model(self): pass
    def data(self, split): pass
    def loss(self, outputs, batch): pass
class Holder:
    Inner = Good
class Bad:
    def model(self): pass
def make(width): return Good(width)
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "hvt_user_task.py").write_text(SOURCE)
    (tmp_path / "hvt_broken.py").write_text("import hvt_no_such_dependency")
    (tmp_path / "hvt_raises.py").write_text("raise RuntimeError('at import')")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield str(tmp_path)
    for name in [name for name in sys.modules if name.startswith("hvt_")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["hvt_user_task:Good", "hvt_user_task.py:Good", "hvt_user_task:make",
                                  "hvt_user_task:Holder.Inner"])
def test_found_and_built(folder, name):
    assert target.build(name, folder, {"width": 7}).width == 7


@pytest.mark.parametrize("name, words", [
    ("hvt_user_task", "write it as module:attribute"), (":Good", "module:attribute"), ("hvt_user_task:", "module:attribute"),
    ("hvt_user_task:Godo", "no 'Godo'. It has: .*Good"), ("hvt_nowhere:Good", "neither in .* nor installed"),
    ("hvt_nowhere.py:Good", "does not exist"), ("hvt_user_task:number", "is a int"),
    ("hvt_user_task:Holder.Outer", "no 'Holder.Outer'")])
def test_mistakes_in_the_name(folder, name, words):
    with pytest.raises(UsageError, match=words):
        target.build(name, folder, {})


def test_mistakes_in_the_arguments_show_the_signature(folder):
    with pytest.raises(UsageError, match=r"task.args do not fit .*'widht'.* It takes \(width\)"):
        target.build("hvt_user_task:make", folder, {"width": 3, "widht": 3})


def test_what_is_no_task_says_what_is_missing(folder):
    with pytest.raises(UserCodeError, match="Bad without data, loss"):
        target.build("hvt_user_task:Bad", folder, {})


def test_errors_of_the_module_itself_are_the_users_to_see(folder):
    with pytest.raises(ModuleNotFoundError, match="hvt_no_such_dependency"):
        target.resolve("hvt_broken:Good", folder)
    with pytest.raises(RuntimeError, match="at import"):
        target.resolve("hvt_raises.py:Good", folder)


def test_the_job_files_directory_comes_first(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "hvt_user_task.py").write_text("Good = None")
    sys.path.insert(0, str(other))
    assert target.resolve("hvt_user_task:Good", folder) is not None


@pytest.mark.parametrize("name", ["hvt_user_task", "hvt_user_task.py"])
def test_a_module_runs_once_however_often_it_is_asked_for(folder, name):
    """The warm process imports it, the workers forked from there find it imported."""
    assert target.resolve(f"{name}:COUNT", folder) is target.resolve(f"{name}:COUNT", folder)
