"""Scripts as jobs (``hvtrain run train.py``): what they import, and running them. Standard library alone at import."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, Iterator

KERAS = {"keras", "tensorflow", "tf_keras", "hvtrain.keras"}


def imported(path: str | os.PathLike[str]) -> list[str]:
    """Modules that a script imports when it begins, by dotted names in the order of its lines.

    Imports within functions are left out: they may never happen. Empty for what cannot be read or parsed; running it
    will tell why.
    """
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    names: dict[str, None] = {}
    for node in _at_once(tree):
        if isinstance(node, ast.Import):
            names.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names[node.module] = None
            if node.module == "hvtrain":  # its names are resolved on first use
                names.update(dict.fromkeys(f"hvtrain.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hvtrain":
            names[f"hvtrain.{node.attr}"] = None
    return list(names)


def framework(path: str | os.PathLike[str]) -> str:
    """Which framework a script is written for, by what it imports."""
    names = imported(path)
    return "keras" if any(name in KERAS or name.partition(".")[0] in KERAS for name in names) else "torch"


def installed(name: str, directory: str | os.PathLike[str]) -> bool:
    """Whether the module ``name`` comes from elsewhere than ``directory``, where the script and its own modules lie."""
    top = name.partition(".")[0]
    if top in sys.builtin_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec is not None else []
    here = Path(directory).resolve()
    return any(place is not None and here != Path(place).resolve().parent for place in places)


def run(path: str | os.PathLike[str]) -> None:
    """Run a script as ``python SCRIPT`` does, in this process.

    Raises whatever it raises; SystemExit only if it says that something went wrong.
    """
    import runpy

    file = str(Path(path).resolve())
    sys.argv = [file]
    sys.path.insert(0, os.path.dirname(file))
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise


def _at_once(node: ast.AST) -> Iterator[Any]:
    """``node`` and all below that are run when the module is: bodies of functions are not."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _at_once(child)
