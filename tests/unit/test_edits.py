"""Edits of Horovod's source: each anchor must stand exactly once, and all are made or none."""

from __future__ import annotations

from pathlib import Path

import pytest

import hvtrain.engine
from hvtrain.engine.edit import Addition, Edit, apply_edits, edit_names, edits_digest
from hvtrain.engine.edits import EDITS
from hvtrain.errors import EngineBuildError


def edit(name: str = "e", file: str = "a.cc", anchor: str = "old", replacement: str = "new") -> Edit:
    return Edit(name=name, file=file, anchor=anchor, replacement=replacement, why="a test")


def addition(directory: Path, file: str = "new.h", text: str = "ours") -> Addition:
    source = directory / f"source-{file}"
    source.write_text(text, encoding="utf-8")
    return Addition(name="a", file=file, source=source, why="a test")


def tree(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        (directory / f"{name}.cc").write_text(text, encoding="utf-8")
    return directory


def test_an_edit_is_made_where_its_anchor_stands(tmp_path: Path) -> None:
    apply_edits(tree(tmp_path, a="1 old 2"), [edit()])
    assert (tmp_path / "a.cc").read_text() == "1 new 2"


@pytest.mark.parametrize("text, count", [("nothing", 0), ("old and old", 2)])
def test_a_missing_or_ambiguous_anchor_is_refused(tmp_path: Path, text: str, count: int) -> None:
    with pytest.raises(EngineBuildError) as caught:
        apply_edits(tree(tmp_path, a=text), [edit(name="my-edit")])
    for part in ("my-edit", "a.cc", f"{count} times", "old"):
        assert part in str(caught.value)
    assert (tmp_path / "a.cc").read_text() == text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match="gone.cc is missing"):
        apply_edits(tmp_path, [edit(file="gone.cc")])


def test_all_or_none(tmp_path: Path) -> None:
    tree(tmp_path, a="old", b="no anchor")
    with pytest.raises(EngineBuildError):
        apply_edits(tmp_path, [edit(), edit(file="b.cc")])
    assert (tmp_path / "a.cc").read_text() == "old"


def test_edits_of_one_file_build_on_each_other(tmp_path: Path) -> None:
    apply_edits(tree(tmp_path, a="old"), [edit(), edit(anchor="new", replacement="newer")])
    assert (tmp_path / "a.cc").read_text() == "newer"


def test_applying_twice_is_refused(tmp_path: Path) -> None:
    apply_edits(tree(tmp_path, a="old"), [edit()])
    with pytest.raises(EngineBuildError, match="been made already"):
        apply_edits(tmp_path, [edit()])


def test_digest_follows_what_is_compiled() -> None:
    assert edits_digest([edit()]) == edits_digest([edit(name="renamed")])
    assert edits_digest([edit()]) != edits_digest([edit(replacement="other")])
    # Moving text from one part to another is not the same edit.
    assert edits_digest([edit(anchor="ab", replacement="c")]) != edits_digest([edit(anchor="a", replacement="bc")])


def test_an_addition_is_written_and_edits_may_build_on_it(tmp_path: Path) -> None:
    here = tree(tmp_path, a="old")
    apply_edits(here, [edit(), addition(tmp_path, text="größer: old"), edit(file="new.h")])
    assert (tmp_path / "new.h").read_text(encoding="utf-8") == "größer: new"
    assert (tmp_path / "a.cc").read_text() == "new"


def test_an_addition_replaces_nothing(tmp_path: Path) -> None:
    tree(tmp_path, a="theirs", b="old")
    with pytest.raises(EngineBuildError, match="Addition 'a'.*a.cc is there already.*been made already"):
        apply_edits(tmp_path, [edit(file="b.cc"), addition(tmp_path, "a.cc")])
    assert (tmp_path / "a.cc").read_text() == "theirs" and (tmp_path / "b.cc").read_text() == "old"
    with pytest.raises(EngineBuildError, match="new.h is there already"):
        apply_edits(tmp_path, [addition(tmp_path), addition(tmp_path, text="other")])
    assert not (tmp_path / "new.h").exists()


def test_nothing_is_added_when_a_later_edit_does_not_fit(tmp_path: Path) -> None:
    tree(tmp_path, a="no anchor")
    with pytest.raises(EngineBuildError, match="anchor"):
        apply_edits(tmp_path, [addition(tmp_path), edit()])
    assert not (tmp_path / "new.h").exists()


def test_an_addition_needs_the_folder_it_goes_to(tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match="ops/new.h.*another release"):
        apply_edits(tmp_path, [Addition(name="a", file="ops/new.h", source=addition(tmp_path).source, why="a test")])


def test_the_digest_follows_what_is_added(tmp_path: Path) -> None:
    digest = edits_digest([addition(tmp_path)])
    assert digest == edits_digest([addition(tmp_path)]) != edits_digest([])
    assert digest != edits_digest([addition(tmp_path, text="ours, changed")])
    assert digest != edits_digest([addition(tmp_path, "other.h")])


def test_ours_are_complete() -> None:
    assert edit_names(EDITS) == ["init-failure", "init-again", "gloo-interface", "release", "broken-round",
                                 "late-tensor", "unlocked-end", "cut", "one-mesh", "ask-once", "no-abort", "half-message",
                                 "connect-timeout", "proof", "secret-path", "told", "ipv6", "own-address", "idle-wait",
                                 "coded", "host", "in-place", "settings-again", "exit-once", "record"]
    for each in EDITS:
        assert each.why and not Path(each.file).is_absolute()
        if isinstance(each, Addition):
            assert each.text.endswith("\n") and Path(each.file).name == each.source.name
        else:
            assert each.anchor.endswith("\n") and each.anchor != each.replacement


def test_every_native_file_is_added_and_comes_with_the_package() -> None:
    native = Path(hvtrain.engine.__file__).parent / "native"
    added = {each.source for each in EDITS if isinstance(each, Addition)}
    assert added == set(native.iterdir()) and {path.suffix for path in added} == {".h"}
    assert "hvtrain.engine = native/*.h" in (native.parents[2] / "setup.cfg").read_text()
