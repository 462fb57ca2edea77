"""What a compiled engine depends on, and the cache that keeps it."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hvtrain.engine.build import build_engine, build_environment, compile_jobs, telling_lines
from hvtrain.engine.cache import RECORD_NAME, EngineCache, cache_directory
from hvtrain.engine.frameworks import Framework, tensorflow_cuda, torch_cuda
from hvtrain.engine.recipe import Recipe, build_variables, current_recipe
from hvtrain.engine.toolchain import Missing
from hvtrain.errors import EngineBuildError, ExitCode

TORCH = Framework("torch", "2.13.0+cpu")
TENSORFLOW = Framework("tensorflow", "2.21.0")


def recipe(env: dict[str, str] | None = None, *frameworks: Framework) -> Recipe:
    return current_recipe(env or {}, frameworks or (TORCH, TENSORFLOW))


def test_equal_environments_have_equal_keys() -> None:
    assert recipe().key == recipe().key
    assert "torch2.13.0+cpu" in recipe().key and "/" not in recipe().key


@pytest.mark.parametrize("other", [
    lambda r: replace(r, frameworks={"torch": "2.14.0"}), lambda r: replace(r, cuda={"torch": "13.0"}),
    lambda r: replace(r, python="cpython-312"), lambda r: replace(r, platform="linux-aarch64"),
    lambda r: replace(r, edits_digest="0"), lambda r: replace(r, horovod="0.29.0"),
    lambda r: replace(r, variables={**r.variables, "HOROVOD_WITH_MPI": "1"}),
])
def test_every_part_changes_the_key(other) -> None:
    assert other(recipe()).key != recipe().key


def test_run_time_variables_of_horovod_do_not_count() -> None:
    assert recipe({"HOROVOD_RANK": "3", "HOROVOD_CYCLE_TIME": "1"}).key == recipe().key


def test_defaults_are_gloo_without_mpi_and_mxnet() -> None:
    assert recipe().variables == {
        "HOROVOD_WITH_GLOO": "1", "HOROVOD_WITHOUT_MPI": "1", "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_PYTORCH": "1", "HOROVOD_WITH_TENSORFLOW": "1"}


def test_the_users_variables_win_and_are_part_of_the_key() -> None:
    env = {"HOROVOD_WITH_MPI": "1", "HOROVOD_GPU_OPERATIONS": "MPI", "HOROVOD_NCCL_HOME": "/opt/nccl"}
    variables = recipe(env).variables
    assert variables.items() >= env.items() and "HOROVOD_WITHOUT_MPI" not in variables
    assert recipe(env).key != recipe().key


def test_a_framework_can_be_left_out() -> None:
    one = recipe({"HOROVOD_WITHOUT_TENSORFLOW": "1"})
    assert list(one.frameworks) == ["torch"]
    assert one.variables["HOROVOD_WITHOUT_TENSORFLOW"] == "1" and "HOROVOD_WITH_TENSORFLOW" not in one.variables


def test_nothing_to_build_for_is_an_error() -> None:
    with pytest.raises(EngineBuildError, match="neither PyTorch nor TensorFlow"):
        current_recipe({}, ())


def test_nccl_is_the_default_with_cuda_headers_and_compiler(tmp_path: Path) -> None:
    for file in ("include/nccl.h", "lib/libnccl.so", "bin/nvcc"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch(mode=0o755)
    env = {"HOROVOD_NCCL_HOME": str(tmp_path), "HOROVOD_CUDA_HOME": str(tmp_path)}
    assert build_variables(env, {"torch"}, cuda=True)["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert "HOROVOD_GPU_OPERATIONS" not in build_variables(env, {"torch"}, cuda=False)
    chosen = build_variables({**env, "HOROVOD_GPU_ALLREDUCE": "MPI"}, {"torch"}, cuda=True)
    assert "HOROVOD_GPU_OPERATIONS" not in chosen


def test_cuda_versions_are_read_from_the_frameworks_files() -> None:
    assert torch_cuda("cuda: Optional[str] = None\n") == ""
    assert torch_cuda("debug = False\ncuda: Optional[str] = '13.0'\n") == "13.0"
    assert tensorflow_cuda("[('is_cuda_build', False)]") == ""
    assert tensorflow_cuda("[('is_cuda_build', True), ('cuda_version', '12.5')]") == "12.5"


@pytest.mark.parametrize("cores, gib, jobs", [(16, 64, 16), (16, 8, 4), (2, 1, 1), (1, 64, 1)])
def test_jobs_follow_cores_and_memory(cores: int, gib: int, jobs: int) -> None:
    assert compile_jobs(cores, gib << 30) == jobs


def test_the_build_sees_the_recipe_and_our_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_WITHOUT_GLOO", "1")  # not in this recipe: must not reach the build
    monkeypatch.setenv("MAKEFLAGS", "")  # as below `make`
    env = build_environment(recipe(), Path("/build/cxx"), 3)
    assert env["CXX"] == "/build/cxx" and env["MAKEFLAGS"] == "-j3" and env["HOROVOD_WITH_GLOO"] == "1"
    assert "HOROVOD_WITHOUT_GLOO" not in env


def test_a_failure_is_explained_by_the_first_errors() -> None:
    output = "\n".join([*["noise"] * 50, "a.cc:3:1: error: no such thing", *["more noise"] * 50])
    assert telling_lines(output).strip() == "a.cc:3:1: error: no such thing"
    assert telling_lines("one\ntwo").split() == ["one", "two"]


@pytest.mark.parametrize("env, path", [
    ({"HVTRAIN_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
    ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/hvtrain"), ({"HOME": "/h"}, "/h/.cache/hvtrain")])
def test_cache_directory(env: dict[str, str], path: str) -> None:
    assert cache_directory(env) == Path(path)


def finished_wheel(directory: Path) -> Path:
    directory.mkdir()
    (directory / "horovod-0.28.1-cp311-cp311-linux_x86_64.whl").write_bytes(b"wheel")
    (directory / RECORD_NAME).write_text("{}")
    return directory


def test_only_complete_engines_are_found(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.prepare()
    assert cache.wheel("k") is None
    with cache.workspace("k") as work:
        (work / "left").touch()
        assert cache.publish("k", finished_wheel(work / "finished")) == cache.wheel("k")
    assert not work.exists()
    with cache.workspace("k") as work:  # a forced build replaces the former one
        assert not (work / "left").exists()
        cache.publish("k", finished_wheel(work / "finished"))
    (tmp_path / "engine" / "k" / RECORD_NAME).unlink()
    assert cache.wheel("k") is None


def _hold(root: Path, entered, release) -> None:
    with EngineCache(root).locked("k", lambda: None):
        entered.set()
        release.wait(10)


def test_two_builds_of_one_engine_wait_for_each_other(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.prepare()
    context = multiprocessing.get_context("spawn")
    entered, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, entered, release))
    holder.start()
    try:
        assert entered.wait(20)
        waited = []

        def waiting() -> None:
            waited.append(time.monotonic())
            release.set()

        with cache.locked("k", waiting):
            assert len(waited) == 1
    finally:
        release.set()
        holder.join(10)
    assert holder.exitcode == 0


def test_missing_tools_are_named_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvtrain.engine.build.current_recipe", recipe)
    monkeypatch.setattr("hvtrain.engine.toolchain.missing_tools",
                        lambda: [Missing("CMake is needed", "cmake"), Missing("Headers are needed", "python3-dev")])
    monkeypatch.setattr("hvtrain.engine.build.fetch_source", lambda directory: pytest.fail("fetched"))
    with pytest.raises(EngineBuildError) as caught:
        build_engine(cache=EngineCache(tmp_path))
    assert "apt-get install cmake python3-dev" in str(caught.value)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT


def test_a_cached_engine_needs_no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvtrain.engine.build.current_recipe", recipe)
    monkeypatch.setattr("hvtrain.engine.build.require_tools", lambda: pytest.fail("asked for tools"))
    cache = EngineCache(tmp_path)
    cache.prepare()
    cache.publish(recipe().key, finished_wheel(tmp_path / "finished"))
    built = build_engine(cache=cache)
    assert not built.fresh and built.wheel.name.startswith("horovod-")
