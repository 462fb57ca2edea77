"""Values with a unit, as they are written in a job file: durations, intervals and lengths of training.

Each value is immutable, compares by what it means (``"1m" == "60s"``) and prints as it was written, so that
a job which is saved and loaded again is the same job.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Mapping

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z%]*)\s*")
_NUMBER_PATTERN = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
_RANGE = re.compile(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?")
_SECONDS: Mapping[str, float] = {
    "ms": 1e-3,
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}
_BYTES: Mapping[str, int] = {
    "b": 1, **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_TRAINING: Mapping[str, str] = {"step": "step", "steps": "step", "epoch": "epoch", "epochs": "epoch"}


class Unit:
    """What the values have in common: a text form, and how pydantic reads, writes and describes it."""

    _example: ClassVar[str]

    @classmethod
    def parse(cls, value: Any) -> "Unit":
        """Read a text or a number. Raises ValueError saying what was expected and what came."""
        raise NotImplementedError

    @classmethod
    def _refuse(cls, value: Any, why: str = "") -> ValueError:
        got = f"'{value}'" if isinstance(value, str) else repr(value)
        return ValueError(f"expected {cls._example}, got {got}" + (f" ({why})" if why else ""))

    @classmethod
    def _validate(cls, value: Any) -> "Unit":
        from pydantic_core import PydanticCustomError

        if isinstance(value, cls):
            return value
        try:
            return cls.parse(value)
        except ValueError as error:  # as a typed pydantic error, so that the text reaches the user unadorned
            raise PydanticCustomError("unit", "{text}", {"text": str(error)}) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json"),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: "GetJsonSchemaHandler") -> dict[str, Any]:
        return {"anyOf": cls._json_forms(), "examples": cls._examples()}

    @classmethod
    def _json_forms(cls) -> list[dict[str, Any]]:
        raise NotImplementedError

    @classmethod
    def _examples(cls) -> list[str]:
        return re.findall('"([^"]*)"', cls._example)


def _split(value: str) -> tuple[float, str] | None:
    """``"1.5 epochs"`` -> (1.5, "epochs"); None when it is not a number and a word."""
    match = _NUMBER.fullmatch(value)
    if match is None or not math.isfinite(float(match[1])):
        return None
    return float(match[1]), match[2].lower()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _words(units: Mapping[str, Any]) -> str:
    return "|".join(units)


@dataclass(frozen=True)
class Duration(Unit):
    """A length of time: ``"500ms"``, ``"2s"``, ``"5m"``, ``"1h"``, or a number of seconds."""

    seconds: float
    text: str = field(default="", compare=False, repr=False)

    _example: ClassVar[str] = 'a time such as "2s", "500ms", "5m" or "1h"'

    @classmethod
    def parse(cls, value: Any) -> "Duration":
        if _is_number(value):
            if not 0 <= value < math.inf:
                raise cls._refuse(value, "a time cannot be negative or infinite")
            return cls(float(value))
        parts = _split(value) if isinstance(value, str) else None
        if parts is None or (parts[1] and parts[1] not in _SECONDS):
            raise cls._refuse(value)
        return cls(parts[0] * _SECONDS[parts[1] or "s"], value.strip())

    def __str__(self) -> str:
        return self.text or f"{self.seconds:.15g}s"

    @classmethod
    def _json_forms(cls) -> list[dict[str, Any]]:
        return [
            {"type": "string", "pattern": rf"^\s*{_NUMBER_PATTERN}\s*({_words(_SECONDS)})?\s*$"},
            {"type": "number", "minimum": 0},
        ]


@dataclass(frozen=True)
class Every(Unit):
    """How often something happens: ``"200 steps"``, ``"1 epoch"``, ``"10 minutes"``; an int counts steps.

    ``unit`` is ``"step"``, ``"epoch"`` or ``"second"``; ``count`` is a whole number above 0, for seconds it
    may have a fraction.
    """

    count: float
    unit: str = "step"
    text: str = field(default="", compare=False, repr=False)

    _example: ClassVar[str] = 'an interval such as "200 steps" or "1 epoch"'

    @classmethod
    def parse(cls, value: Any) -> "Every":
        if isinstance(value, int) and not isinstance(value, bool):
            if value <= 0:
                raise cls._refuse(value, "it must be above 0")
            return cls(value)
        parts = _split(value) if isinstance(value, str) else None
        if parts is None:
            raise cls._refuse(value)
        number, word = parts
        unit = _TRAINING.get(word or "steps")
        if unit is None and word not in _SECONDS:
            raise cls._refuse(value)
        if unit is None:
            number, unit = number * _SECONDS[word], "second"
        elif number != int(number):
            raise cls._refuse(value, f"{unit}s are counted in whole numbers")
        if number <= 0:
            raise cls._refuse(value, "it must be above 0")
        count = int(number) if number == int(number) else number
        return cls(count, unit, value.strip() if word else "")

    def __str__(self) -> str:
        if self.text:
            return self.text
        return f"{self.count:.15g} {self.unit}" + ("" if self.count == 1 else "s")

    @classmethod
    def _json_forms(cls, time: bool = True) -> list[dict[str, Any]]:
        units = f"steps?|epochs?|{_words(_SECONDS)}" if time else "steps?|epochs?"
        pattern = rf"^\s*{_NUMBER_PATTERN}\s*({units})?\s*$" if time else rf"^\s*[0-9]+\s*({units})?\s*$"
        return [{"type": "string", "pattern": pattern}, {"type": "integer", "minimum": 1}]


@dataclass(frozen=True)
class Steps(Unit):
    """A stretch of the training: ``"5%"`` of all steps, ``"100 steps"``, ``"1 epoch"``; an int counts steps.

    ``unit`` is ``"percent"``, ``"step"`` or ``"epoch"``.
    """

    count: float
    unit: str = "step"
    text: str = field(default="", compare=False, repr=False)

    _example: ClassVar[str] = 'a length such as "5%", "100 steps" or "1 epoch"'

    @classmethod
    def parse(cls, value: Any) -> "Steps":
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 0:
                raise cls._refuse(value, "it cannot be negative")
            return cls(value)
        parts = _split(value) if isinstance(value, str) else None
        if parts is None:
            raise cls._refuse(value)
        number, word = parts
        unit = {"%": "percent", **_TRAINING}.get(word or "steps")
        if unit is None:
            raise cls._refuse(value)
        if unit == "percent" and number > 100:
            raise cls._refuse(value, "it cannot be above 100%")
        if unit == "step" and number != int(number):
            raise cls._refuse(value, "steps are counted in whole numbers")
        return cls(int(number) if number == int(number) else number, unit, value.strip() if word else "")

    def resolve(self, total_steps: int, steps_per_epoch: int) -> int:
        """The number of steps, for a training of ``total_steps``; it may exceed them."""
        if self.unit == "percent":
            return round(total_steps * self.count / 100)
        return round(self.count * (steps_per_epoch if self.unit == "epoch" else 1))

    def __str__(self) -> str:
        if self.text:
            return self.text
        if self.unit == "percent":
            return f"{self.count:.15g}%"
        return f"{self.count:.15g} {self.unit}" + ("" if self.count == 1 else "s")

    @classmethod
    def _json_forms(cls) -> list[dict[str, Any]]:
        return [
            {"type": "string", "pattern": rf"^\s*{_NUMBER_PATTERN}\s*(%|steps?|epochs?)?\s*$"},
            {"type": "integer", "minimum": 0},
        ]


@dataclass(frozen=True)
class Size(Unit):
    """An amount of memory: ``"80GB"`` (10^9 bytes each), ``"512MiB"`` (2^20 bytes each), or a number of bytes."""

    bytes: int
    text: str = field(default="", compare=False, repr=False)

    _example: ClassVar[str] = 'an amount of memory such as "80GB" or "512MiB"'

    @classmethod
    def parse(cls, value: Any) -> "Size":
        number, word = (float(value), "b") if _is_number(value) else _split(value) or (0.0, "") \
            if isinstance(value, str) else (0.0, "")
        if word not in _BYTES or not number < math.inf or round(number * _BYTES[word]) < 1:
            raise cls._refuse(value)
        return cls(round(number * _BYTES[word]), value.strip() if isinstance(value, str) else "")

    def __str__(self) -> str:
        return self.text or f"{self.bytes}B"

    @classmethod
    def _json_forms(cls) -> list[dict[str, Any]]:
        return [
            {"type": "string", "pattern": rf"^\s*{_NUMBER_PATTERN}\s*([kKmMgGtT]i?)?[bB]\s*$"},
            {"type": "number", "exclusiveMinimum": 0},
        ]


@dataclass(frozen=True)
class StepRange(Unit):
    """Certain steps, both ends included, counted from 1: ``"10-20"``; ``"12"`` or an int is one step."""

    first: int
    last: int
    text: str = field(default="", compare=False, repr=False)

    _example: ClassVar[str] = 'a step or a range of steps, such as "10-20"'

    @classmethod
    def parse(cls, value: Any) -> "StepRange":
        match = _RANGE.fullmatch(str(value)) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
        if match is None:
            raise cls._refuse(value)
        first, last = int(match[1]), int(match[2] or match[1])
        if first < 1:
            raise cls._refuse(value, "the first step is 1")
        if first > last:
            raise cls._refuse(value, f"{last} comes before {first}")
        return cls(first, last, value.strip() if isinstance(value, str) else "")

    def __contains__(self, step: int) -> bool:
        return self.first <= step <= self.last

    def __str__(self) -> str:
        return self.text or (str(self.first) if self.first == self.last else f"{self.first}-{self.last}")

    @classmethod
    def _json_forms(cls) -> list[dict[str, Any]]:
        return [{"type": "string", "pattern": r"^\s*[0-9]+\s*(-\s*[0-9]+\s*)?$"}, {"type": "integer", "minimum": 1}]
