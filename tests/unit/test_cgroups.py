"""What control groups leave of a machine, in both versions, in containers and outside."""

from __future__ import annotations

import os

import pytest

from hvtrain import cgroups
from hvtrain.engine.machine import cores, memory_free

OLD = "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n"
NEW = "0::/job/step\n"


@pytest.fixture
def root(tmp_path):
    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path
    return write


def test_without_groups_there_is_no_limit(root):
    assert cgroups.processors(root({})) is None and cgroups.memory_left(root({})) == cgroups.UNLIMITED
    assert cores(root({})) == len(os.sched_getaffinity(0)) and memory_free(root({})) > 0


@pytest.mark.parametrize("quota, expected", [
    ("max 100000", None), ("100000 100000", 1.0), ("50000 100000", 0.5), ("1000000 100000", 10.0), ("nonsense", None)])
def test_a_quota_of_version_2(root, quota, expected):
    where = root({"proc/self/cgroup": NEW, "sys/fs/cgroup/job/cpu.max": quota,
                  "sys/fs/cgroup/job/step/cpu.max": "max 100000"})
    assert cgroups.processors(where) == expected  # of the group above: it holds for those below
    assert cores(where) == min(len(os.sched_getaffinity(0)), max(1, int(expected or 1e6)))


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("quota, expected", [("-1", None), ("150000", 1.5), ("50000", 0.5)])
def test_a_quota_of_version_1_in_a_container_that_sees_the_hosts_path(root, mount, quota, expected):
    where = root({"proc/self/cgroup": OLD, f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us": f"{quota}\n",
                  f"sys/fs/cgroup/{mount}/cpu.cfs_period_us": "100000\n"})
    assert cgroups.processors(where) == expected
    assert expected is None or cores(where) == 1


def test_the_least_of_several_groups_counts(root):
    where = root({"proc/self/cgroup": NEW, "sys/fs/cgroup/cpu.max": "300000 100000",
                  "sys/fs/cgroup/job/cpu.max": "200000 100000", "sys/fs/cgroup/job/step/cpu.max": "400000 100000",
                  "sys/fs/cgroup/job/memory.max": "5000\n", "sys/fs/cgroup/job/memory.current": "4000\n",
                  "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 1000\n"})
    assert cgroups.processors(where) == 2.0
    assert cgroups.memory_left(where) == memory_free(where) == 2000
