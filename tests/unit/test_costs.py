"""A measurement of a model survives the disk, and scales to other micro-batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvtrain.errors import UsageError
from hvtrain.hybrid.costs import LayerCost, ModelCosts

SECONDS, BYTES = st.floats(0, 10), st.integers(0, 10**12)
COSTS = st.builds(
    ModelCosts, st.lists(st.builds(LayerCost, st.text(), SECONDS, SECONDS, BYTES, BYTES, BYTES), max_size=4).map(tuple),
    st.integers(1, 64), st.sampled_from(["cpu", "cuda:0"]), SECONDS, SECONDS, SECONDS, BYTES)


@given(COSTS)
def test_reading_gives_what_was_written(costs):
    assert ModelCosts.from_json(costs.to_json()) == costs


@pytest.mark.parametrize("text", [
    "", "[]", "{}", "3", '{"layers": [{"name": "a"}]}', '{"layers": [], "batch": 1, "device": "cpu", "colour": 2}'])
def test_what_is_no_measurement_is_refused(text):
    with pytest.raises(ValueError):
        ModelCosts.from_json(text)


@given(COSTS, st.integers(1, 256))
def test_another_microbatch_is_in_proportion(costs, samples):
    there = costs.at(samples)
    factor = samples / costs.batch
    assert there.batch == samples and (there.state, there.update) == (costs.state, costs.update)
    for before, after in zip(costs.layers, there.layers):
        assert after.forward == pytest.approx(before.forward * factor)
        assert after.backward == pytest.approx(before.backward * factor)
        assert after.parameters == before.parameters
        assert 0 <= after.saved * costs.batch - before.saved * samples < costs.batch  # rounded up
        assert 0 <= after.output * costs.batch - before.output * samples < costs.batch


def test_a_microbatch_without_samples_is_refused():
    with pytest.raises(UsageError, match="got 0"):
        ModelCosts((), 1, "cpu").at(0)
