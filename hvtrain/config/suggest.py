"""What the user may have meant: close spellings, and the same key in another section."""

from __future__ import annotations

import difflib
import types
from functools import lru_cache
from typing import Annotated, Any, Iterable, Mapping, Sequence, Union, get_args, get_origin

from pydantic import BaseModel

# What people coming from elsewhere write, and the key of ours that it stands for.
_OTHER_NAMES: Mapping[str, str] = {
    "batch_size": "data.global_batch", "learning_rate": "optim.lr", "num_workers": "data.workers",
    "num_epochs": "train.epochs", "max_epochs": "train.epochs", "max_steps": "train.steps",
    "optimizer": "optim", "scheduler": "optim.schedule", "gradient_clip": "train.grad_clip",
    "clip_grad_norm": "train.grad_clip", "output_dir": "run.dir", "model": "task", "np": "launch.workers",
}


def closest(word: str, choices: Iterable[str], likeness: float = 0.6) -> str | None:
    """The choice spelled most like ``word``, or None if none is alike (``likeness``, from 0 to 1)."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=likeness)
    return by_lower[found[0]] if found else None


def key(model: type[BaseModel], path: Sequence[str | int]) -> str:
    """``did you mean ...?`` for an unknown key, or an empty text. ``path`` ends with that key."""
    *parents, name = path
    if not isinstance(name, str):
        return ""
    section = section_at(model, parents)
    siblings = list(section.model_fields) if section else []
    everywhere = _all_keys(model)
    elsewhere = [full for full in everywhere if full.rsplit(".", 1)[-1] == name and "." in full]
    wanted = _OTHER_NAMES.get(name.lower())
    prefix = ".".join(map(str, parents))
    best = closest(name, siblings, 0.8)  # a slip of the finger; then the right key in the wrong place
    if best is None and wanted:
        best = wanted.removeprefix(f"{prefix}.") if prefix else wanted
    if best is None and elsewhere:
        return f"did you mean {elsewhere[0] if len(elsewhere) == 1 else 'one of ' + ', '.join(elsewhere)}?"
    best = best or closest(name, siblings)
    if best:
        return f"did you mean {best}?"
    return f"known here: {', '.join(siblings)}" if siblings else ""


def section_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """The section class at ``path``, or None if something else stands there."""
    section: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int) or section is None:
            continue  # an element of a list of sections has the class already found
        field = section.model_fields.get(part)
        section = _section_in(field.annotation) if field else None
    return section


def describe(model: type[BaseModel], path: Sequence[str | int]) -> str:
    """The documentation of the key at ``path``, or an empty text."""
    *parents, name = path
    section = section_at(model, parents)
    field = section.model_fields.get(str(name)) if section else None
    return (field.description or "") if field else ""


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list):
        return next((found for found in map(_section_in, get_args(annotation)) if found), None)
    return None


@lru_cache(maxsize=8)
def _all_keys(model: type[BaseModel]) -> tuple[str, ...]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(name)
        inner = _section_in(field.annotation)
        if inner and get_origin(field.annotation) is not list:
            keys += [f"{name}.{below}" for below in _all_keys(inner)]
    return tuple(keys)
