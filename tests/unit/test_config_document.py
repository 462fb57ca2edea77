"""YAML text to values, lines and faults."""

from __future__ import annotations

import math

import pytest

from hvtrain.config.document import read


def test_values_are_what_people_mean():
    text = """
    a: 1e-3
    b: 1_000
    c: 0x1f
    d: 1:30
    e: "010"
    f: 2024-01-01
    g: [yes, off, true]
    h: ~
    i: -.5
    j: -.inf
    k: 5%
    l: 010
    m: 1.
    """
    value = read(text).value
    assert value == {
        "a": 0.001, "b": 1000, "c": 31, "d": "1:30", "e": "010", "f": "2024-01-01", "g": [True, False, True],
        "h": None, "i": -0.5, "j": -math.inf, "k": "5%", "l": "010", "m": 1.0,
    }


def test_lines_of_keys_and_elements():
    lines = read("a: 1\n\nb:\n  - x: 1\n    y: {z: 2}\n  - 3\n").lines
    assert lines == {
        ("a",): 1, ("b",): 3, ("b", 0): 4, ("b", 0, "x"): 4, ("b", 0, "y"): 5, ("b", 0, "y", "z"): 5,
        ("b", 1): 6}


def test_merge_and_alias():
    parsed = read("base: &b {x: 1, y: 2}\nnew:\n  <<: *b\n  y: 3\nsame: *b\n")
    assert parsed.value["new"] == {"x": 1, "y": 3} and parsed.value["same"] == {"x": 1, "y": 2}
    assert parsed.lines["new", "x"] == 1 and parsed.lines["new", "y"] == 4
    assert not parsed.faults


def test_merge_takes_lists_and_the_first_wins():
    parsed = read("p: &p {x: 1}\nq: &q {x: 2, y: 2}\nr: {<<: [*p, *q]}\n")
    assert parsed.value["r"] == {"x": 1, "y": 2}


def test_all_faults_are_found_and_the_rest_is_read():
    text = "a: 1\na: 2\nb: !!binary aGk=\nc: {1: x}\nd: !!python/object:os.system x\ne: {k: 1, k: 2}\nf: ok\n"
    parsed = read(text)
    assert [(fault.line, fault.path) for fault in parsed.faults] == [
        (2, ("a",)), (3, ("b",)), (4, ("c",)), (5, ("d",)), (6, ("e", "k"))]
    assert "first on line 1" in parsed.faults[0].message
    assert '"1" in quotes' in parsed.faults[2].message
    assert parsed.value == {"a": 1, "c": {}, "e": {"k": 1}, "f": "ok"}


@pytest.mark.parametrize("text, line", [
    ("a: [1\nb: 2", 2), ("a:\n\tb: 1", 2), ("a: 'x", 1), ("a: b: c", 1),
    ("a: 1\n---\nb: 2\n", 2), ("a: *nowhere", 1),
])
def test_bad_syntax_has_a_line(text, line):
    (fault,) = read(text).faults
    assert fault.message.startswith("not valid YAML: ")
    assert fault.line == line


def test_control_characters_are_a_fault():
    assert read("a: \x00").faults


def test_endless_aliases_end():
    assert "contains itself" in read("a: &a [*a]").faults[0].message
    bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh"))
    assert "more than" in read(bomb).faults[0].message


def test_wrong_explicit_tag():
    assert "not of the type !!int" in read("a: !!int x").faults[0].message


def test_empty():
    assert read("").value is None and not read("# only a comment\n").faults
