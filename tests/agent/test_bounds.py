"""What is read at a tick is bounded, and what the kernel promises is asked only of the kernel's."""

from pathlib import Path

import pytest

from joulegram.agent.clock import SystemClock
from joulegram.agent.textfile import WHOLE_BYTES, read_file
from joulegram.agent.use import cgroups
from joulegram.agent.use.mounts import filesystem, is_kernels_cgroup2, is_kernels_procfs


@pytest.mark.parametrize("own", ["user.slice/user-1000.slice", "system.slice/own.service"])
def test_one_users_cgroups_are_cut_short_and_not_those_of_others(tmp_path, own):
    """They may make what they like below their slice, or what they were given; it counts there."""
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    greedy = tmp_path / own
    greedy.mkdir(parents=True)
    greedy.chmod(0o777)
    for n in range(4):
        for m in range(cgroups.IN_GIVEN_MAX // 2):
            (greedy / f"a{n}/b{m}").mkdir(parents=True)
    job = tmp_path / "system.slice/slurmstepd.scope/job_1/step_0/user/task_0"
    job.mkdir(parents=True)
    tree = cgroups.Cgroups(tmp_path, SystemClock())
    tree.scan(10**12)
    assert cgroups.IN_GIVEN_MAX <= len(tree) < cgroups.IN_GIVEN_MAX + 20
    (job / "cpu.stat").write_text("usage_usec 5\n")
    tree.scan(10**12)
    inside = "/" + str(job.relative_to(tmp_path))
    assert tree.owner(inside) == inside


def test_no_file_is_read_beyond_its_bound(tmp_path):
    huge = tmp_path / "huge"
    huge.write_bytes(b"x" * (WHOLE_BYTES + 5_000_000))
    assert WHOLE_BYTES <= len(read_file(huge)) < WHOLE_BYTES + 100_000


def test_a_played_tree_is_not_the_kernels(tmp_path):
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 0\n")
    assert not is_kernels_procfs(tmp_path)
    assert not is_kernels_cgroup2(tmp_path)
    assert filesystem(tmp_path / "nowhere") == ""


def test_the_kernels_own_procfs_is_known():
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("no Linux procfs here")
    assert filesystem(Path("/proc")) == "proc"
    assert is_kernels_procfs(Path("/proc"))


def test_a_mount_table_of_nonsense_names_no_filesystem(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_bytes(b"\xff\n1 2\n - \n36 35 98:0 / / - ext4\n" + b"x" * 5000)
    assert filesystem(tmp_path, table) == ""
