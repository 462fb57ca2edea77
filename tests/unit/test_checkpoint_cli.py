"""``hvtrain ckpt``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from hvtrain.checkpoint import Blob, Snapshot, Store, write
from hvtrain.checkpoint.digest import digest
from hvtrain.cli import ckpt_target
from hvtrain.cli.ckpt import ckpt
from hvtrain.errors import CheckpointDamaged, CheckpointMissing, EnvironmentNotReady, UsageError


def snapshot(step, accuracy):
    weights = {"w": Blob.from_numpy(np.full(8, step, "f4")), "count": Blob.from_numpy(np.array(step))}
    ema = {"w": Blob.from_numpy(np.full(8, step / 2, "f4"))}
    return Snapshot(step=step, epoch=step // 100, groups={"model": weights, "ema": ema, "optimizer": {}},
                    metrics={"accuracy": accuracy}, state={"cursor": 8}, world_size=2)


@pytest.fixture
def run(tmp_path):
    for step, accuracy in [(100, 0.5), (200, 0.9), (300, 0.8)]:
        write(Store(tmp_path / "run" / "checkpoints"), snapshot(step, accuracy))
    return tmp_path / "run"


@pytest.fixture
def configured(run, monkeypatch):
    (run / "config.yaml").write_text("")
    settings = SimpleNamespace(keep=1, keep_every=None, best="accuracy", best_mode="auto", dir=None)
    monkeypatch.setattr(ckpt_target.Target, "_settings", lambda self: settings if self.config else None)
    return run


def invoke(*arguments):
    result = CliRunner().invoke(ckpt, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def damage(run, step):
    (Store(run / "checkpoints").path(step) / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize("place", [".", "checkpoints"])
def test_ls(run, place):
    lines = invoke("ls", run / place).splitlines()
    assert lines[0].split()[:4] == ["NAME", "STEP", "EPOCH", "CURSOR"] and len(lines) == 4
    assert lines[2].split()[:5] == ["step-00000200", "200", "2", "8", "2"]
    assert lines[2].endswith("accuracy=0.9")
    rows = json.loads(invoke("ls", run / place, "--json"))
    assert [row["step"] for row in rows] == [100, 200, 300]
    assert rows[0]["groups"] == ["ema", "model", "optimizer"]


def test_ls_of_damaged_and_of_one(run):
    damage(run, 200)
    assert "damaged: model.safetensors has 0 bytes" in invoke("ls", run)
    assert len(invoke("ls", run / "checkpoints" / "step-00000100").splitlines()) == 2


def test_verify(run):
    assert invoke("verify", run).splitlines() == [f"step-00000{step}: sound" for step in (100, 200, 300)]
    damage(run, 200)
    with pytest.raises(CheckpointDamaged, match="1 of 3 .*step-00000200"):
        invoke("verify", run)
    result = CliRunner().invoke(ckpt, ["verify", "--json", str(run)])
    assert [row["sound"] for row in json.loads(result.stdout)] == [True, False, True]
    assert invoke("verify", run, "--step", "100") == "step-00000100: sound\n"


def test_what_is_missing_is_said(run, tmp_path):
    for arguments, error, words in [
        (("verify", tmp_path / "nowhere"), CheckpointMissing, "no directory"),
        (("ls", tmp_path), CheckpointMissing, "neither a run"),
        (("digest", run, "--step", "7"), CheckpointMissing, "Steps there: 100, 200, 300"),
        (("digest", run, "--step", "x"), UsageError, "newest or best"),
        (("digest", run, "--step", "best"), UsageError, "--metric NAME"),
        (("digest", run, "--step", "best", "--metric", "f1"), CheckpointMissing, "'f1'"),
        (("digest", run / "checkpoints" / "step-00000100", "--step", "200"), UsageError, "one checkpoint"),
        (("prune", run), UsageError, "--keep N"),
        (("prune", run / "checkpoints" / "step-00000100", "--keep", 1), UsageError, "one checkpoint"),
        (("export", run, "--to", tmp_path / "x.pt"), UsageError, "safetensors"),
        (("export", run, "--to", tmp_path / "no" / "x.safetensors"), EnvironmentNotReady, "be written"),
    ]:
        with pytest.raises(error, match=words):
            invoke(*arguments)


def test_digest(run):
    assert invoke("digest", run).strip() == digest(snapshot(300, 0))
    assert invoke("digest", run, "--step", "best", "--metric", "accuracy").strip() == digest(snapshot(200, 0))
    average = invoke("digest", run, "--step", "100", "--weights", "ema").strip()
    assert average == digest(snapshot(100, 0), "ema")
    damage(run, 300)
    assert invoke("digest", run).strip() == digest(snapshot(200, 0))
    with pytest.raises(CheckpointDamaged):
        invoke("digest", run, "--step", "300")
    assert invoke("digest", run / "checkpoints" / "step-00000100").strip() == digest(snapshot(100, 0))


def test_best_skips_damaged(configured):
    assert invoke("digest", configured, "--step", "best").strip() == digest(snapshot(200, 0))
    damage(configured, 200)
    assert invoke("digest", configured, "--step", "best").strip() == digest(snapshot(300, 0))


def test_prune(configured):
    assert invoke("prune", configured, "--dry-run") == "would delete step-00000100\n"
    assert len(Store(configured / "checkpoints").steps()) == 3
    assert invoke("prune", configured, "--keep", 2) == "deleted step-00000100\n"
    assert Store(configured / "checkpoints").steps() == [200, 300]
    assert invoke("prune", configured) == ""  # 200 is the best, 300 the newest


def test_prune_without_a_job(run):
    invoke("prune", run, "--keep", "1", "--metric", "accuracy")
    assert Store(run / "checkpoints").steps() == [200, 300]
    invoke("prune", run, "--keep", "1")
    assert Store(run / "checkpoints").steps() == [300]


def test_prune_with_a_real_job(run):
    (run / "config.yaml").write_text("task: {target: task:make}\ncheckpoint: {keep: 1, best: accuracy}\n")
    assert invoke("prune", run) == "deleted step-00000100\n"
    assert invoke("digest", run, "--step", "best").strip() == digest(snapshot(200, 0))


def test_export(run, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file

    output = tmp_path / "weights.safetensors"
    assert "model weights of step-00000300" in invoke("export", run, "--to", output)
    found = load_file(output)
    assert set(found) == {"w", "count"} and (found["w"] == 300).all() and found["count"] == 300
    with safe_open(output, "np") as file:
        assert file.metadata() == {"format": "pt"}
    with pytest.raises(UsageError, match="--force"):
        invoke("export", run, "--to", output)
    invoke("export", run, "--to", output, "--weights", "ema", "--step", "100", "--force")
    found = load_file(output)
    assert (found["w"] == 50).all() and found["count"] == 100


def test_export_of_damaged_weights_leaves_no_file(run, tmp_path):
    path = Store(run / "checkpoints").path(300) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointDamaged, match="sha256"):
        invoke("export", run, "--step", "300", "--to", tmp_path / "out" / "x.safetensors")
    assert os.listdir(tmp_path / "out") == []


def test_help_needs_no_heavy_imports():
    code = ("import sys; from hvtrain.cli.ckpt import ckpt; from click.testing import CliRunner\n"
            "assert CliRunner().invoke(ckpt, ['export', '--help']).exit_code == 0\n"
            "heavy = ('numpy', 'pydantic', 'torch', 'hvtrain.checkpoint')\n"
            "print([name for name in heavy if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout.strip() == "[]"


def test_the_package_needs_neither_framework_nor_numpy():
    code = ("import sys, hvtrain.checkpoint\n"
            "print([name for name in ('numpy', 'torch', 'tensorflow', 'horovod') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout.strip() == "[]"
