"""Durations, intervals, lengths and sizes: what they accept, mean and print."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtrain.config.units import Duration, Every, Size, StepRange, Steps


@pytest.mark.parametrize("text, seconds", [
    ("2s", 2), ("500ms", 0.5), ("5m", 300), ("1h", 3600), ("1.5 minutes", 90), (3, 3), (0.25, 0.25), ("7", 7),
])
def test_duration(text, seconds):
    assert Duration.parse(text).seconds == pytest.approx(seconds)
    assert Duration.parse(str(Duration.parse(text))) == Duration.parse(text)


@pytest.mark.parametrize("text, count, unit", [
    ("200 steps", 200, "step"), ("1 step", 1, "step"), ("1 epoch", 1, "epoch"), ("2 epochs", 2, "epoch"),
    ("10m", 600, "second"), ("10 minutes", 600, "second"), (50, 50, "step"), ("1.5h", 5400, "second"),
])
def test_every(text, count, unit):
    every = Every.parse(text)
    assert (every.count, every.unit) == (count, unit)
    assert Every.parse(str(every)) == every


@pytest.mark.parametrize("text, steps", [
    ("5%", 50), ("100 steps", 100), ("1 epoch", 40), ("0.5 epochs", 20), (7, 7), (0, 0), ("0", 0),
    ("100%", 1000),
])
def test_steps_resolve(text, steps):
    assert Steps.parse(text).resolve(total_steps=1000, steps_per_epoch=40) == steps


@pytest.mark.parametrize("text, first, last", [
    ("10-20", 10, 20), ("12", 12, 12), (12, 12, 12), (" 3 - 3 ", 3, 3), (1, 1, 1),
])
def test_step_range(text, first, last):
    steps = StepRange.parse(text)
    assert (steps.first, steps.last) == (first, last)
    assert first in steps and last in steps and first - 1 not in steps and last + 1 not in steps
    assert StepRange.parse(str(steps)) == steps
    assert str(StepRange(first, last)) in (f"{first}-{last}", f"{first}")


@pytest.mark.parametrize("text, count", [
    ("80GB", 80 * 10**9), ("512MiB", 512 * 2**20), ("1.5 GB", 1_500_000_000), ("2tib", 2 * 2**40), ("3kB", 3000),
    ("7B", 7), (4096, 4096), (1e9, 10**9),
])
def test_size(text, count):
    assert Size.parse(text).bytes == count
    assert Size.parse(str(Size.parse(text))) == Size.parse(text)


def test_text_is_kept_but_equality_is_by_meaning():
    assert str(Duration.parse("60s")) == "60s"
    assert Duration.parse("60s") == Duration.parse("1m")
    assert hash(Duration.parse("60s")) == hash(Duration.parse("1m"))
    assert str(Every.parse(1)) == "1 step" and str(Every.parse(2)) == "2 steps"
    assert str(Steps.parse(0)) == "0 steps"
    assert str(Size.parse("1.0GiB")) == "1.0GiB" and str(Size.parse(512)) == "512B"
    assert Size.parse("1GiB") == Size.parse("1024 MiB") == Size.parse(2**30)


@pytest.mark.parametrize("kind, bad", [
    (Duration, "soon"), (Duration, "-1s"), (Duration, -1), (Duration, True), (Duration, None),
    (Duration, "2 parsecs"), (Duration, float("nan")), (Duration, float("inf")),
    (Duration, ""), (Duration, [1]), (Duration, "1e400s"),
    (Every, 0), (Every, -5), (Every, "0 steps"), (Every, "1.5 epochs"), (Every, 1.5), (Every, True),
    (Every, "5%"), (Every, "epoch"), (Every, "0s"),
    (StepRange, "20-10"), (StepRange, 0), (StepRange, "0-5"), (StepRange, -3), (StepRange, "10-"), (StepRange, "10:20"),
    (StepRange, 1.5), (StepRange, True), (StepRange, None), (StepRange, "5 steps"), (StepRange, [10, 20]),
    (Size, "80G"), (Size, "80"), (Size, "0GB"), (Size, 0), (Size, -1), (Size, "-1GB"), (Size, True), (Size, None),
    (Size, ""), (Size, "much"), (Size, "1e400B"), (Size, float("nan")), (Size, [80]), (Size, "5%"), (Size, "0.4B"),
    (Size, "80Gb/s"), (Size, float("inf")),
    (Steps, "101%"), (Steps, -1), (Steps, "1.5 steps"), (Steps, 0.05), (Steps, "10 minutes"), (Steps, False),
])
def test_refused_with_expectation_and_input(kind, bad):
    with pytest.raises(ValueError) as error:
        kind.parse(bad)
    assert str(error.value).startswith("expected ")
    assert str(bad) in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([Duration, Every, Size, Steps, StepRange]), st.floats(0, 1e9) | st.integers(0, 10**9),
       st.sampled_from(["", "%", "ms", "s", "m", "h", " hours", " steps", " step", " epoch", " epochs",
                        " secs", "-2000000000", "B", "kB", " GiB", "mb", "TB"]))
def test_whatever_parses_prints_back_and_fits_its_schema(kind, number, unit):
    text = f"{number:.6f}{unit}" if isinstance(number, float) else f"{number}{unit}"
    try:
        value = kind.parse(text)
    except ValueError:
        return
    assert kind.parse(str(value)) == value
    (pattern,) = [form["pattern"] for form in kind._json_forms() if "pattern" in form]
    assert re.search(pattern, text) and re.search(pattern, str(value))
