"""``${run.seed}`` and ``${oc.env:HOME}`` in a job file, by OmegaConf."""

from __future__ import annotations

import re
from typing import Any, Iterator, Mapping

from hvtrain.config.document import Path

_MARK = "${"


def resolve(
    tree: dict[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], list[tuple[Path, str]]]:
    """``tree`` with everything filled in, and what went wrong as (path, message).

    References find the values of ``tree``, and where it is silent those of ``defaults``. Values that cannot
    be filled in are left out of the result.
    """
    texts = [path for path, value in _leaves(tree, ()) if _MARK in value]
    if not texts:
        return tree, []
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    failed: list[tuple[Path, str]] = []
    for path in texts:  # a text that is no expression at all would make the whole tree unreadable
        try:
            OmegaConf.create({"text": _get(tree, path)})
        except OmegaConfBaseException as error:
            failed.append((path, f"'{_get(tree, path)}' is not a valid reference: {_first_line(error)}"))
    tree = _without(tree, [path for path, _ in failed])
    unreadable = {path for path, _ in failed}
    config = OmegaConf.create(_over(defaults, tree))
    filled: dict[Path, Any] = {}
    for path in texts:
        if path in unreadable:
            continue
        try:
            value = _get(config, path)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            filled[path] = value
        except (OmegaConfBaseException, RecursionError) as error:
            failed.append((path, f"'{_get(tree, path)}' cannot be filled in: {_first_line(error)}"))
    lost = [path for path, _ in failed if path not in unreadable]
    return _without(_replace(tree, (), filled), lost), failed


def escape(text: str) -> str:
    """The text that ``resolve`` turns back into ``text``."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _leaves(node: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, (*path, i))


def _get(node: Any, path: Path) -> Any:
    for part in path:
        node = node[part]
    return node


def _replace(node: Any, path: Path, values: Mapping[Path, Any]) -> Any:
    if path in values:
        return values[path]
    if isinstance(node, dict):
        return {key: _replace(value, (*path, key), values) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace(value, (*path, i), values) for i, value in enumerate(node)]
    return node


def _without(tree: Any, paths: list[Path], here: Path = ()) -> Any:
    """``tree`` without the values at ``paths``; a list that loses an element becomes None there."""
    if isinstance(tree, dict):
        return {
            key: _without(value, paths, (*here, key))
            for key, value in tree.items() if (*here, key) not in paths
        }
    if isinstance(tree, list):
        return [
            None if (*here, i) in paths else _without(value, paths, (*here, i))
            for i, value in enumerate(tree)
        ]
    return tree


def _over(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _over(below, value) if both else value
    return merged
