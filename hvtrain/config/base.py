"""What all sections of a job share: strictness, and the types of their fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, WrapValidator
from pydantic_core import PydanticCustomError

from hvtrain.config.units import Duration, Every


class Section(BaseModel):
    """Base of the sections: frozen, no unknown keys, no silent conversions (``"3"`` is not a number)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True,
        ser_json_inf_nan="constants",  # free-form ``args`` may hold them, and must come back as they were
    )


def _above_zero(value: Duration) -> Duration:
    if value.seconds <= 0:
        raise PydanticCustomError("unit", "{text}", {"text": f"expected a time above 0, got '{value}'"})
    return value


def _no_time(value: Every) -> Every:
    if value.unit == "second":
        text = (f"expected steps or epochs, such as \"200 steps\" or \"1 epoch\", got '{value}' (only "
                "checkpoint.every may be a time, since all ranks must agree on the step)")
        raise PydanticCustomError("unit", "{text}", {"text": text})
    return value


def _int_or_auto(value: Any, handler: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    got = f"'{value}'" if isinstance(value, str) else repr(value)
    text = f"expected a whole number above 0, or auto; got {got}"
    raise PydanticCustomError("unit", "{text}", {"text": text})


def _duration_or_auto(value: Any, handler: Any) -> Any:
    return value if value == "auto" else _above_zero(Duration._validate(value))


def _any_duration_or_auto(value: Any, handler: Any) -> Any:
    return value if value == "auto" else Duration._validate(value)


PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Mode = Literal["auto", "max", "min"]
PositiveDuration = Annotated[Duration, AfterValidator(_above_zero)]
StepsOrEpochs = Annotated[
    Every,
    AfterValidator(_no_time),
    WithJsonSchema({"anyOf": Every._json_forms(time=False), "examples": Every._examples()}),
]
Threads = Annotated[Union[PositiveInt, Literal["auto"]], WrapValidator(_int_or_auto)]
Patience = Annotated[Union[Duration, Literal["auto"]], WrapValidator(_duration_or_auto)]
DurationOrAuto = Annotated[Union[Duration, Literal["auto"]], WrapValidator(_any_duration_or_auto)]


def _every_or_auto(value: Any, handler: Any) -> Any:
    if value == "auto":
        return value
    every = Every._validate(value)
    if every.unit == "epoch":
        raise PydanticCustomError("unit", "{text}", {
            "text": f"expected auto, steps or a time, such as \"50 steps\" or \"10 s\", got '{value}'"})
    return every


StepsTimeOrAuto = Annotated[Union[Every, Literal["auto"]], WrapValidator(_every_or_auto)]
