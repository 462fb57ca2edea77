"""Places of tasks under mpirun and srun, and the file by which they find each other."""

from __future__ import annotations

import json
import os
import stat
import time

import pytest

from hvtrain.control.client import Address
from hvtrain.errors import EnvironmentNotReady, UsageError
from hvtrain.launch import noticefile
from hvtrain.launch.noticefile import NoticeFile
from hvtrain.launch.taskrun import check_same
from hvtrain.launch.tasks import Task, of_environment, tasks_per_node

OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "2041708545"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_NODEID": "0",
         "SLURM_TASKS_PER_NODE": "1(x4)"}
STEP = {**BATCH, "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
        "SLURM_PROCID": "6", "SLURM_NODEID": "3"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
ADDRESS = Address("10.0.0.1", 4321, "t" * 32)


@pytest.mark.parametrize(("env", "place"), [
    (OPEN_MPI, Task("mpirun", 3, 4, 1, 2, "mpirun 2041708545")),
    (MPICH, Task("mpiexec", 1, 2, 1, 2)),
    (STEP, Task("srun", 6, 7, 0, 1, "srun 7.2.0")),
    ({**STEP, "SLURM_RESTART_COUNT": "1"}, Task("srun", 6, 7, 0, 1, "srun 7.2.1")),
    ({**STEP, **OPEN_MPI}, Task("mpirun", 3, 4, 1, 2, "mpirun 2041708545")),
    (BATCH, None), ({}, None), ({"PMI_RANK": "0", "PMI_SIZE": "4"}, None),
    ({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}, None),
], ids=["mpirun", "mpiexec", "srun", "requeued", "mpirun in a batch job", "batch script", "nothing", "half of it",
        "srun of one task"])
def test_the_place_that_a_launcher_has_given(env, place):
    assert of_environment(env) == place


def test_variables_that_make_no_sense_are_refused():
    with pytest.raises(EnvironmentNotReady, match="open mpi sets .*OMPI_COMM_WORLD_LOCAL_SIZE"):
        of_environment({key: value for key, value in OPEN_MPI.items() if key != "OMPI_COMM_WORLD_LOCAL_SIZE"})
    with pytest.raises(EnvironmentNotReady, match="slurm sets"):
        of_environment({**STEP, "SLURM_NODEID": "9"})


def test_slurms_short_form_of_tasks_per_node():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1] and tasks_per_node("4") == [4]
    with pytest.raises(ValueError):
        tasks_per_node("2x3")


def test_hosts_are_counted():
    assert Task("mpirun", 0, 8, 0, 4).hosts == 2 and Task("mpirun", 0, 2, 0, 2).hosts == 1
    assert Task("srun", 0, 7, 0, 2).hosts == 4


# The file -------------------------------------------------------------------------------------------------
def test_the_file_is_for_this_user_alone_and_for_this_job_alone(tmp_path):
    first = NoticeFile(tmp_path / "run", "mpirun 1")
    assert first.read() is None
    first.write(ADDRESS)
    assert first.read() == ADDRESS
    assert stat.S_IMODE(os.stat(first.path).st_mode) == 0o600
    assert NoticeFile(tmp_path / "run", "mpirun 2").read() is None, "what a former mpirun job has left behind"
    first.write_end(3)
    assert first.read() == 3 and NoticeFile(tmp_path / "run", "mpirun 2").read() is None
    before = time.time() - 60
    os.utime(tmp_path / "run" / noticefile.FILE, (before, before))
    assert first.read() is None, "a former start in the same container, whose Open MPI gives the same name again, failed"
    first.remove()
    first.remove()
    assert first.read() is None


def test_without_a_name_of_the_launchers_job_the_files_age_tells(tmp_path):
    NoticeFile(tmp_path, "").write(ADDRESS)
    assert NoticeFile(tmp_path, "").read() == ADDRESS
    before = time.time() - noticefile.OLD_SECONDS - 5
    os.utime(tmp_path / noticefile.FILE, (before, before))
    assert NoticeFile(tmp_path, "").read() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"job": "j"}', '{"job": "j", "host": "h", "port": "x"}'])
def test_a_damaged_file_says_nothing(tmp_path, text):
    (tmp_path / noticefile.FILE).write_text(text)
    assert NoticeFile(tmp_path, "j").read() is None


def test_the_environment_may_say_where_the_coordinator_is(monkeypatch):
    monkeypatch.delenv(noticefile.VARIABLE, raising=False)
    assert noticefile.of_environment("t" * 32) is None
    monkeypatch.setenv(noticefile.VARIABLE, "[fd00::1]:4321")
    assert noticefile.of_environment("t" * 32) == Address("fd00::1", 4321, "t" * 32, tls=None)
    with pytest.raises(UsageError, match="HVTRAIN_TOKEN"):
        noticefile.of_environment(None)


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "fd00::1:2", "host:0", "host:65536", "host:1x", "[::1]"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="--coordinator expects HOST:PORT"):
        noticefile.parse(text, "--coordinator")


# One job --------------------------------------------------------------------------------------------------
def test_tasks_that_were_started_with_other_settings_are_told_which():
    job = {"optim": {"lr": 0.1, "name": "adam"}, "launch": {"workers": 4, "port": None}, "hybrid": {"stages": "auto"},
           "checkpoint": {"resume": "auto"}, "framework": "torch"}
    first = {**job, "launch": {"workers": 2, "port": 4321}, "hybrid": {"stages": 2}, "checkpoint": {"resume": "never"}}
    check_same(job, first)
    with pytest.raises(UsageError, match="optim.lr is 0.1 here and 0.2 there"):
        check_same(job, {**first, "optim": {"lr": 0.2, "name": "adam"}})
    with pytest.raises(UsageError, match="framework is 'torch' here and 'keras' there"):
        check_same(job, {**first, "framework": "keras"})
