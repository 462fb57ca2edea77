"""A split that does not fit its model is answered with the layers that there are, and with one that fits."""

from __future__ import annotations

import re
import shlex

import pytest

from hvtrain.config import load
from hvtrain.errors import ExitCode, Uncuttable, UsageError, UserCodeError
from hvtrain.hybrid import splits

NAMES = ["embed", "block0", "block1", "block2", "head"]


def refused(split, names=NAMES, more=""):
    with pytest.raises(UsageError) as error:
        splits.check(split, names, more)
    return str(error.value)


def test_a_split_that_fits_is_taken():
    splits.check([2, 3], NAMES)
    splits.check([1] * 5, NAMES)


@pytest.mark.parametrize("split", [[1, 99], [2, 2], [5, 0], [], [1] * 9, [99]], ids=str)
def test_what_is_to_be_typed_is_taken(split, tmp_path):
    """At first nobody said which split would fit; with many layers it took counting their names."""
    said = refused(split)
    assert "1: embed, 2: block0, 3: block1, 4: block2, 5: head" in said
    words = shlex.split(said.split("\n")[1])
    typed = [word.rstrip(".") for word in words if re.match(r"hybrid\.(split=\[|stages=\d)", word)]
    file = tmp_path / "job.yaml"
    file.write_text('version: 1\ntask: {target: "t:T"}\nhybrid: {stages: %d}\n' % max(1, len(split)))
    job = load(file, typed)
    splits.check(job.hybrid.split, NAMES)


def test_both_numbers_are_said():
    assert refused([1, 99]).startswith("hybrid.split is [1, 99], 100 layers in 2 stages, but the model has 5 layers (1")
    assert refused([1] * 9).startswith("9 stages need at least 9 layers, but the model can be cut into 5 only (1: embe")
    assert "\n  block0 was kept whole" in refused([3], more="\n  block0 was kept whole")


def test_of_many_layers_the_first_and_the_last_are_named():
    said = splits.listed([f"layer{number}" for number in range(300)])
    assert said.startswith("1: layer0, 2: layer1, ")
    assert said.endswith("36: layer35, ..., 298: layer297, 299: layer298, 300: layer299")


def test_even():
    assert splits.even(7, 2) == [4, 3] and splits.even(7, 3) == [3, 2, 2] and splits.even(2, 2) == [1, 1]


def test_a_model_that_cannot_be_cut_is_a_mistake_of_the_job():
    """It ended a job with the exit code of a bug in the user's code, though the model trains well without stages."""
    assert Uncuttable("why").exit_code is ExitCode.USAGE
    assert isinstance(Uncuttable("why"), UserCodeError) and Uncuttable("why").traceback_text == ""
