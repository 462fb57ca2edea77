"""Finding user code by name: ``package.module:attribute``, ``module:attribute`` or ``file.py:attribute``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from hvtrain.errors import UsageError, UserCodeError


def resolve(target: str, directory: str) -> Any:
    """The object that ``target`` names; ``directory`` (the job file's) is searched first.

    Raises:
        UsageError: there is no such module or attribute.
        Exception: whatever importing the module raises.
    """
    module_name, separator, attribute = target.partition(":")
    if not separator or not module_name or not attribute:
        raise UsageError(f"task.target is {target!r}; write it as module:attribute, for example task:mnist")
    module = _import(module_name, Path(directory).resolve())
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = ", ".join(n for n in vars(module) if not n.startswith("_"))
            raise UsageError(f"task.target is {target!r}, but {module_name} has no {attribute!r}. It has: {names}")
        found = getattr(found, part)
    return found


def build(target: str, directory: str, args: dict[str, Any]) -> Any:
    """Call what ``target`` names with ``args``: the job's task.

    Raises:
        UsageError: the target cannot be called, or not with these arguments.
        UserCodeError: the result is not a task.
    """
    import inspect

    factory = resolve(target, directory)
    if not callable(factory):
        raise UsageError(f"task.target {target!r} is a {type(factory).__name__}; it must be a Task class or a function")
    try:
        inspect.signature(factory).bind(**args)
    except TypeError as error:
        raise UsageError(f"task.args do not fit {target!r}: {error}. It takes {inspect.signature(factory)}") from None
    return checked(factory(**args), target)


def checked(task: Any, name: str) -> Any:
    """``task`` itself if it has what a task must have, else UserCodeError."""
    missing = [method for method in ("model", "data", "loss") if not callable(getattr(task, method, None))]
    if missing:
        raise UserCodeError(f"{name!r} gave a {type(task).__name__} without {', '.join(missing)}; "
                            "subclass hvtrain.Task and define model, data and loss")
    return task


def _import(name: str, directory: Path) -> Any:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    if name.endswith(".py"):
        path = (directory / name).resolve()
        if not path.is_file():
            raise UsageError(f"task.target names the file {name!r}, but {path} does not exist")
        known = sys.modules.get(path.stem)
        if known is not None and getattr(known, "__file__", None) == str(path):
            return known  # the warm process has run it; a forked worker must not run it again
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(f"task.target names the module {name!r}, which is neither in {directory} nor "
                             "installed") from None
        raise
