"""The loader keeps the order, surfaces errors where they belong, and leaves no thread behind."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtrain.data import loader as loader_module
from hvtrain.data.loader import Loader
from hvtrain.data.sampler import GlobalSampler, Position, split
from hvtrain.data.sources import ArraySource, SampleError, as_source
from hvtrain.errors import UsageError, UserCodeError


class Slow:
    """Samples that take differently long; may be told to fail, or to block until `release`."""

    def __init__(self, fail=-1, block=-1, delay=0.0):
        self.fail, self.block, self.delay = fail, block, delay
        self.release, self.entered = threading.Event(), threading.Event()
        self.seen: list[int] = []

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        self.seen.append(index)
        if index == self.block:
            self.entered.set()
            self.release.wait(20)
        time.sleep(self.delay * (index % 3))
        if index == self.fail:
            raise ValueError("bad picture")
        return index


def work(count, size=3, epoch=0):
    return ((epoch, np.arange(start, start + size)) for start in range(0, count * size, size))


def running():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hvtrain-loader")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    deadline = time.monotonic() + 5
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running()


@pytest.mark.parametrize("workers, prefetch", [(0, 1), (1, 1), (2, 1), (3, 8)])
def test_batches_come_in_order(workers, prefetch):
    with Loader(as_source(Slow(delay=0.0005)), workers=workers, prefetch=prefetch) as loader:
        got = [batch.tolist() for batch in loader.batches(work(40))]
    assert got == [indices.tolist() for _, indices in work(40)]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 3), st.integers(1, 5), st.lists(st.integers(0, 6), max_size=20))
def test_any_sizes_of_work(workers, prefetch, sizes):
    items = [(0, np.arange(size) + 10 * place) for place, size in enumerate(sizes)]
    with Loader(ArraySource(np.arange(1000)), workers=workers, prefetch=prefetch) as loader:
        got = list(loader.batches(items))
    assert [None if batch is None else batch.tolist() for batch in got] == [
        indices.tolist() or None for _, indices in items]


def test_the_same_batches_with_and_without_threads():
    class Noisy(Slow):
        def sample(self, index, rng):
            return index + rng.random()

    sampler = GlobalSampler(1000, 96, 3)
    runs = []
    for workers in (0, 3):
        with Loader(as_source(Noisy()), workers=workers, seed=5) as loader:
            steps = itertools.islice(sampler.walk(Position(0, 900)), 14)
            items = [(position.epoch, split(indices, 1, 3)) for position, indices in steps]
            runs.append(np.concatenate(list(loader.batches(items))))
    assert (runs[0] == runs[1]).all()
    assert len(set(runs[0])) == len(runs[0])  # the same sample in two epochs is augmented in two ways


def test_loading_is_ahead_of_the_step_but_not_further():
    data = Slow()
    pulled = []
    with Loader(as_source(data), workers=1, prefetch=3) as loader:
        batches = loader.batches(pulled.append(place) or item for place, item in enumerate(work(50)))
        next(batches)
        deadline = time.monotonic() + 5
        while len(data.seen) < 4 * 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert len(pulled) == 4 and sorted(data.seen) == list(range(12))
        batches.close()


def test_loading_overlaps_with_the_step():
    def duration(workers):
        with Loader(as_source(Slow(delay=0.01)), workers=workers) as loader:
            begin = time.monotonic()
            for _ in loader.batches(work(15)):
                time.sleep(0.03)  # the step; a batch takes 0.03 s as well
            return time.monotonic() - begin

    assert duration(2) < 0.8 * duration(0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_surfaces_at_its_batch_with_index_and_traceback(workers):
    with Loader(as_source(Slow(fail=31)), workers=workers, prefetch=6) as loader:
        got = []
        with pytest.raises(UserCodeError, match="Sample 31 of .*ValueError: bad picture") as caught:
            for batch in loader.batches(work(40)):
                got.append(batch)
        assert len(got) == 10
        assert 'raise ValueError("bad picture")' in caught.value.traceback_text
        assert isinstance(caught.value.__cause__, ValueError)
        assert next(loader.batches(work(1))).tolist() == [0, 1, 2]  # and the loader is still of use


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_does_not_fit_is_named(workers):
    data = [np.ones(2)] * 7 + [np.ones(3)] + [np.ones(2)] * 2
    with Loader(as_source(data), workers=workers) as loader:
        with pytest.raises(SampleError, match=r"Sample 7 .*shape \(3,\)") as caught:
            list(loader.batches([(0, np.array([5, 7, 8]))]))
    assert caught.value.index == 7


def test_other_failures_name_the_batch():
    with Loader(ArraySource(np.ones(5))) as loader:
        with pytest.raises(UserCodeError, match="Samples 4, 9 .*IndexError"):
            list(loader.batches([(0, np.array([4, 9]))]))
    with Loader(as_source([1, 2]), collate=lambda samples: 1 // 0) as loader:
        with pytest.raises(UserCodeError, match="ZeroDivisionError"):
            list(loader.batches([(0, np.array([1]))]))


def test_system_exit_in_a_thread_reaches_the_consumer():
    class Exits(Slow):
        def __getitem__(self, index):
            raise SystemExit(7)

    with Loader(as_source(Exits()), workers=1) as loader, pytest.raises(SystemExit):
        next(loader.batches(work(1)))


def test_leaving_early_discards_what_was_ahead_and_starts_anew():
    data = Slow(delay=0.001)
    with Loader(as_source(data), workers=2, prefetch=4) as loader:
        for restart in range(6):  # a resize: new slices from the next step on
            batches = loader.batches(work(50, epoch=restart))
            assert next(batches).tolist() == [0, 1, 2]
            del batches
        assert len(running()) == 2


def test_what_waits_in_the_queue_of_an_abandoned_iterator_is_not_loaded():
    data = Slow(block=4)
    with Loader(as_source(data), workers=1, prefetch=5) as loader:
        batches = loader.batches(work(50))
        next(batches)
        assert data.entered.wait(5)  # the thread is in the second batch, four more are queued
        batches.close()
        data.release.set()
        assert next(loader.batches([(0, np.array([500]))])).tolist() == [500]
    assert data.seen == [0, 1, 2, 3, 4, 5, 500]


def test_two_iterators_share_the_threads():
    with Loader(as_source(Slow()), workers=2) as loader:
        pairs = list(zip(loader.batches(work(20)), loader.batches(work(20, size=2))))
    assert [(len(one), len(two)) for one, two in pairs] == [(3, 2)] * 20


def test_threads_start_with_the_first_batch_and_close_is_final():
    loader = Loader(as_source(Slow()), workers=2)
    batches = loader.batches(work(5))
    assert not running()
    next(batches)
    assert len(running()) == 2
    loader.close()
    loader.close()
    assert not running()
    with pytest.raises(UsageError, match="closed"):
        loader.batches(work(1))
    with pytest.raises(UsageError, match="closed"):
        list(batches)


def test_close_is_bounded_while_the_data_set_hangs(monkeypatch, caplog):
    monkeypatch.setattr(loader_module, "_JOIN", 0.2)
    data = Slow(block=4)
    loader = Loader(as_source(data), workers=1)
    batches = loader.batches(work(5))
    next(batches)
    errors = []

    def consume():
        try:
            next(batches)
        except UsageError as error:
            errors.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert data.entered.wait(5)
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING):
        loader.close()
    assert time.monotonic() - begin < 2
    assert "hvtrain-loader-0 still inside" in caplog.text
    consumer.join(3)
    assert not consumer.is_alive() and "closed" in str(errors[0])
    data.release.set()


def test_a_long_wait_is_said_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr(loader_module, "_SLOW", 0.05)
    monkeypatch.setattr(loader_module, "_LOOK", 0.02)
    data = Slow(block=1)
    threading.Timer(0.3, data.release.set).start()
    with Loader(as_source(data), workers=1) as loader, caplog.at_level(logging.WARNING):
        assert next(loader.batches(work(1))).tolist() == [0, 1, 2]
    assert "waiting for samples 0, 1, 2" in caplog.text


def test_a_forgotten_loader_leaves_no_threads():
    loader = Loader(as_source(Slow()), workers=2)
    batches = loader.batches(work(5))
    next(batches)
    del loader, batches
    gc.collect()  # the fixture sees to the rest


def test_impossible_arguments():
    with pytest.raises(UsageError, match="prefetch at least 1, got 0 and 0"):
        Loader(ArraySource(np.ones(1)), prefetch=0)
    with pytest.raises(UsageError, match="workers"):
        Loader(ArraySource(np.ones(1)), workers=-1)
