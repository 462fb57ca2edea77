"""Members of rounds, and what they meet by, for the tests of the engine (test_engine_*.py)."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import Callable, Iterator

import pytest

from engine_members import Member, warm
from engine_store import Store


@pytest.fixture
def fork() -> Iterator[Callable[..., list[Member]]]:
    """``fork(count, framework="torch")`` starts members; all of them end after the test."""
    with ExitStack() as stack:
        def start(count: int, framework: str = "torch") -> list[Member]:
            members = warm(framework)
            stack.callback(members.end)
            return members.fork(count)

        yield start


@pytest.fixture
def store() -> Iterator[Callable[[], Store]]:
    """``store()`` is a new one; all of them are closed after the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Store()))
