"""No file and no socket is ever unpickled: a checkpoint or a message from a stranger must not run code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "hvtrain"
DANGEROUS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "torch.hub.load"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.partition(".")[0] for name in names} & DANGEROUS
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call not in FORBIDDEN and not call.endswith(".load_model"), call
            assert not any(k.arg == "shell" for k in node.keywords), "a shell reads names as commands"
            assert call not in ("torch.load", "np.load", "numpy.load") or any(
                k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords), call
