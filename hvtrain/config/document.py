"""YAML text -> plain values, and the line that every key stands on.

One walk over PyYAML's node tree does both, so that a mistake does not hide those after it:

    text --compose--> nodes --walk--> value  {"optim": {"lr": 0.001}}
                                      lines  {("optim",): 7, ("optim", "lr"): 8}
                                      faults [Fault(9, ("optim", "lr"), "given twice ...")]
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Union

Path = tuple[Union[str, int], ...]

_PLAIN = ("null", "bool", "int", "float", "str")
_TAG = "tag:yaml.org,2002:"
_MAX_VALUES = 100_000
_BAD = object()  # stands for a value with a fault, until whatever would have held it leaves it out
# YAML 1.1 as PyYAML reads it takes 1e-3 for text, 1:30 for ninety and 010 for eight; people mean none of it.
FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")


@dataclass(frozen=True)
class Fault:
    """A mistake in the text itself."""

    line: int | None
    path: Path
    message: str


@dataclass
class Document:
    """What a text holds. ``value`` is None for an empty one; keys with faults are left out of it."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read(text: str) -> Document:
    """Parse a text; never raises on a bad one, but reports it in ``faults``."""
    import yaml

    try:
        loader = _loader()(text)  # it looks at the characters at once
        try:
            root = loader.get_single_node()
            walk = _Walk(loader)
            if root is not None:
                value = walk.value(root, ())
                walk.document.value = None if value is _BAD else value
            return walk.document
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        return Document(faults=[_syntax(error)])


def _syntax(error: Any) -> Fault:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    parts = (getattr(error, "context", None), getattr(error, "problem", None))
    what = " ".join(str(part) for part in parts if part) or str(error).splitlines()[0]
    hint = "; indent with spaces, not with tabs" if "'\\t'" in what else ""
    return Fault(mark.line + 1 if mark else None, (), f"not valid YAML: {what}{hint}")


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")


@lru_cache(maxsize=1)
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe YAML with the numbers that people write, and no dates."""

    kept = ("bool", "null", "merge")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag.removeprefix(_TAG) in kept]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(_TAG + "int", _INT, list("-+0123456789"))
    Loader.add_implicit_resolver(_TAG + "float", FLOAT, list("-+.0123456789"))
    return Loader


class _Walk:
    """Turns nodes into values; one per document."""

    def __init__(self, loader: Any):
        self.document = Document()
        self._loader = loader
        self._open: list[Any] = []  # nodes being walked: an alias to one of them has no end
        self._count = 0

    def value(self, node: Any, path: Path) -> Any:
        import yaml

        self._count += 1
        if self._count > _MAX_VALUES:
            text = f"more than {_MAX_VALUES} values"
            raise yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)
        if any(node is other for other in self._open):
            return self._fault(node, path, "an alias that contains itself")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                items = [self._item(child, (*path, i)) for i, child in enumerate(node.value)]
                return _BAD if any(item is _BAD for item in items) else items
            if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_TAG) in _PLAIN:
                return self._scalar(node, path)
            return self._fault(node, path, f"the YAML type {_short(node.tag)} is not supported here")
        finally:
            self._open.pop()

    def _scalar(self, node: Any, path: Path) -> Any:
        try:
            return self._loader.construct_object(node)
        except (ValueError, KeyError):  # an explicit tag on a text that does not fit it: !!int x
            return self._fault(node, path, f"'{node.value}' is not of the type {_short(node.tag)}")

    def _item(self, node: Any, path: Path) -> Any:
        self.document.lines[path] = node.start_mark.line + 1
        return self.value(node, path)

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        own: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _TAG + "merge":
                merged = {**merged, **self._merge(value_node, path, merged)}
                continue
            if key_node.tag != _TAG + "str":
                shown = getattr(key_node, "value", "")
                hint = f"; write \"{shown}\" in quotes" if isinstance(shown, str) and shown else ""
                self._fault(key_node, path, f"a key must be text{hint}")
                continue
            key = key_node.value
            if key in own:
                self._fault(key_node, (*path, key), f"given twice; first on line {own[key]}")
                continue
            own[key] = line
            value = self.value(value_node, (*path, key))
            if value is not _BAD:
                result[key] = value
        # After the walk, since merged mappings have left the lines of their own keys.
        self.document.lines.update({(*path, key): line for key, line in own.items()})
        return {**{key: value for key, value in merged.items() if key not in own}, **result}

    def _merge(self, node: Any, path: Path, before: dict[str, Any]) -> dict[str, Any]:
        """The mappings behind ``<<``; what is already there wins."""
        import yaml

        found: dict[str, Any] = dict(before)
        for child in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            values = self.value(child, path)
            if not isinstance(values, dict):
                if values is not _BAD:
                    self._fault(child, path, "`<<` takes a mapping, or a list of them")
                continue
            found = {**values, **found}
        return found

    def _fault(self, node: Any, path: Path, message: str) -> Any:
        self.document.faults.append(Fault(node.start_mark.line + 1, path, message))
        return _BAD
