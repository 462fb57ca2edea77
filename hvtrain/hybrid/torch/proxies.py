"""What fx's proxies cannot do by themselves: assignment to items, and assertions."""

from __future__ import annotations

import dis
import operator
from types import FrameType
from typing import Any

from torch import fx


class Proxy(fx.Proxy):
    """Records ``x[i] = value``."""

    def __setitem__(self, item: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, item, value), {})


def asserted(frame: FrameType) -> str:
    """The place of the assert statement that ``frame`` asks the truth of a value for; empty if it is no such one."""
    code = list(dis.get_instructions(frame.f_code))
    place = next((n for n, instruction in enumerate(code) if instruction.offset >= frame.f_lasti), len(code))
    while place < len(code) and code[place].opname in ("TO_BOOL", "CACHE"):
        place += 1
    if place + 1 >= len(code) or not code[place].opname.endswith("IF_TRUE"):
        return ""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if code[place + 1].opname == "LOAD_ASSERTION_ERROR" else ""


def hold(condition: Any, place: str) -> None:
    """An assertion, when the traced model runs."""
    if not condition:
        raise AssertionError(f"the assertion at {place} does not hold")
