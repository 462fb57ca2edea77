"""``hvtrain config show|validate|schema``, and the schema itself."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from hvtrain.cli.config import config
from hvtrain.config import Job, load, schema
from hvtrain.errors import ConfigError


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RUN__SEED", "OPTIM__LR"):
        monkeypatch.delenv(f"HVTRAIN_{name}", raising=False)
    (tmp_path / "digits.yaml").write_text("task: {target: 'task:digits'}\n")
    return "digits.yaml"


def invoke(*args):
    return CliRunner().invoke(config, args, catch_exceptions=True)


def test_show_prints_a_job_that_loads_to_the_same(path, tmp_path):
    result = invoke("show", path, "optim.lr=5e-4")
    assert result.exit_code == 0
    (tmp_path / "shown.yaml").write_text(result.output)
    assert load("shown.yaml") == load(path, ["optim.lr=5e-4"])


def test_validate(path):
    assert invoke("validate", path).output == "digits.yaml is a valid job\n"
    result = invoke("validate", path, "optim.lr=fast")
    assert isinstance(result.exception, ConfigError) and len(result.exception.problems) == 1


def test_schema_command():
    assert json.loads(invoke("schema").output) == schema()


def test_help_mentions_precedence():
    assert "HVTRAIN_OPTIM__LR" in invoke("--help").output


def _sections(document):
    return [document, *document["$defs"].values()]


def test_schema_documents_every_key_and_refuses_others():
    document = schema()
    assert document["$schema"].endswith("2020-12/schema")
    assert set(document["properties"]) == set(Job.model_fields)
    for section in _sections(document):
        assert section["additionalProperties"] is False and section["description"]
        for key, field in section["properties"].items():
            assert field.get("description", "").endswith("."), key


def test_schema_takes_the_texts_of_units():
    defs = schema()["$defs"]
    def forms(section, key):
        field = defs[section]["properties"][key]
        flat = [inner for form in field["anyOf"] for inner in form.get("anyOf", [form])]
        return [form["pattern"] for form in flat if "pattern" in form]

    (every,), (saved,) = forms("EvalConfig", "every"), forms("CheckpointConfig", "every")
    assert re.search(every, "200 steps") and not re.search(every, "10 minutes")
    assert re.search(saved, "10 minutes")
    (warmup,) = forms("ScheduleConfig", "warmup")
    assert re.search(warmup, "5%") and re.search(warmup, "1 epoch")
    (traced,) = forms("LogConfig", "timeline")
    assert re.search(traced, "10-20") and re.search(traced, "12") and not re.search(traced, "10 steps")
    assert defs["ElasticConfig"]["properties"]["replace_timeout"]["default"] == "2s"
