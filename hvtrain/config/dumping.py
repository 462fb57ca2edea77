"""A ``Job`` -> YAML that loads to an equal one, and the JSON Schema that editors complete job files with."""

from __future__ import annotations

from typing import Any

from hvtrain.config.document import FLOAT
from hvtrain.config.interpolation import escape
from hvtrain.config.job import Job
from hvtrain.config.units import Unit

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def dump(job: Job) -> str:
    """The resolved job as YAML, defaults included."""
    return to_yaml(_escaped(job.model_dump(mode="json")), width=110)


def to_yaml(value: Any, **style: Any) -> str:
    """``value`` as YAML that :mod:`hvtrain.config.document` reads back as it was; ``style`` as for ``yaml.dump``."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes the texts that would be read back as numbers."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, data: str) -> Any:
        # PyYAML folds these line breaks away unless they are escaped, which it does in double quotes only.
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029\ufeff") else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, text)
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, **style)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a job file."""
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        """Writes a default with a unit as its text."""

        def encode_default(self, dft: Any) -> Any:
            return str(dft) if isinstance(dft, Unit) else super().encode_default(dft)

    document = Job.model_json_schema(mode="validation", schema_generator=Generator)
    return {"$schema": _DIALECT, **document, "title": "hvtrain job"}


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return value
