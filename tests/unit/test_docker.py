"""The files of docker/ against the command line and the job files that they use, without any container."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from hvtrain.cli.main import COMMANDS, LazyGroup
from hvtrain.config.loading import load
from hvtrain.control import health

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DOCKER / "compose.yaml").read_text()))


def steps(stage=None):
    """(instruction, rest) of the Dockerfile, or of one stage of it; continued lines are one."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    found, current = [], ""
    for line in filter(None, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            current = rest.partition(" AS ")[2]
        if stage in (None, current):
            found.append((instruction, rest.strip()))
    return found


def accept(arguments, job):
    """Have the command line parse ``arguments``, and the job file in ``job`` its overrides; nothing is run."""
    arguments = [argument.replace("/job/", f"{job}/") for argument in arguments]
    name, rest = arguments[0], arguments[1:]
    command = LazyGroup().get_command(click.Context(LazyGroup()), name)
    assert command is not None, f"there is no command {name}"
    with command.make_context(name, list(rest)) as context:
        if name == "run":
            return load(context.params["job"], list(context.params["overrides"]))
    return None


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_what_compose_runs_is_understood(service):
    found = COMPOSE["services"][service]
    mount = next(volume for volume in found["volumes"] if ":/job" in volume)
    job = accept(found["command"], (DOCKER / mount.partition(":")[0]).resolve())
    if service == "coordinator":
        assert job.launch.token_file == f"/run/secrets/{found['secrets'][0]}"
        address = COMPOSE["services"]["node"]["command"][2]
        assert address == f"{found['hostname']}:{job.launch.port}", "nodes look for it elsewhere"
        runs = next(volume for volume in found["volumes"] if volume.startswith("runs:")).partition(":")[2]
        assert (Path("/work") / job.run.dir).is_relative_to(runs), "its directory is not in the volume"
        grace = int(found["stop_grace_period"].rstrip("s"))
        assert grace > job.launch.stop_timeout.seconds, "it would be killed during its last checkpoint"


def test_compose_is_consistent():
    for service in COMPOSE["services"].values():
        assert set(service["secrets"]) <= set(COMPOSE["secrets"])
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] if "/" not in source else (DOCKER / source).is_dir()
        build = service["build"]
        assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
        assert set(service["build"]["args"]) <= {rest.partition("=")[0] for name, rest in steps() if name == "ARG"}
    secret = Path("/docker") / COMPOSE["secrets"]["token"]["file"]
    assert str(secret) in (ROOT / ".gitignore").read_text().split()


def test_the_image_starts_and_checks_the_command():
    last = dict(steps("")[-6:])
    entry = json.loads(last["ENTRYPOINT"])
    assert entry == ["tini", "--", "hvtrain"] and last["USER"] != "root"
    _, _, check = last["HEALTHCHECK"].partition("CMD ")
    program, command = json.loads(check)
    assert program == "hvtrain" and command in COMMANDS
    assert f"{health.VARIABLE}=" in DOCKERFILE
    interval = int(re.search(r"--interval=(\d+)s", last["HEALTHCHECK"]).group(1))
    assert interval >= health.GOOD_SECONDS, "two checks in a row would judge by the same sign"


def test_what_the_image_is_made_of_is_there_and_not_ignored():
    patterns = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copies = [shlex.split(rest) for name, rest in steps() if name == "COPY" and "--from" not in rest]
    assert copies
    for *sources, _ in copies:
        for source in sources:
            assert (ROOT / source).exists(), f"COPY {source}: it is not there"
            assert any(fnmatch.fnmatch(source, each) or source.startswith(f"{each}/") for each in patterns), source
    wanted = [name for words in re.findall(r"ARG FRAMEWORKS=\"(.*)\"", DOCKERFILE) for name in words.split()]
    assert wanted and all((ROOT / "requirements" / f"{name}.txt").is_file() for name in [*wanted, "base", "keras"])


def test_the_engines_stage_has_all_that_it_imports(tmp_path):
    for name, rest in steps("engine"):
        if name == "COPY":
            *sources, target = shlex.split(rest)
            for source in map(ROOT.joinpath, sources):
                place = tmp_path / target.removeprefix("/src/")
                if source.is_dir():
                    shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, place)
    command = next(rest for name, rest in steps("engine") if "hvtrain.cli.main" in rest)
    words = re.search(r"-m hvtrain.cli.main ([^)]*)", command).group(1).split()
    accept(words, tmp_path)
    assert words[:2] == ["engine", "build"]
    code = ("from hvtrain.cli.engine import build; import hvtrain.cli.main, hvtrain.engine.build; "
            f"build.make_context('build', {words[2:]}); print(hvtrain.engine.build.__file__)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0 and done.stdout.startswith(str(tmp_path)), done.stderr


def test_what_the_trial_runs_is_understood():
    spec = importlib.util.spec_from_file_location("docker_try", DOCKER / "try.py")
    trial = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trial)
    place = {"image": "IMAGE", "network": "net", "volume": "vol", "token": "/tmp/token"}
    started = []

    class Engine:
        made: list = []

        def __call__(self, *arguments, **_):
            started.append(list(arguments))
            return ""

    settings = re.findall(r'settings=\((.*?)\)\)', (DOCKER / "try.py").read_text())
    trial.Job(Engine(), "x", 2, place=place, settings=tuple(json.loads(f"[{settings[0]}]")))
    jobs = [accept(arguments[arguments.index("IMAGE") + 1:], DOCKER / "trial") for arguments in started]
    job = next(filter(None, jobs))
    assert len(jobs) == 3 and job.train.steps == trial.STEPS and job.log.ledger and job.elastic.max_workers == 3
    assert job.launch.port == trial.PORT
