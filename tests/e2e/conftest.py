"""What several end-to-end tests start from."""

import os
import subprocess
import time

import pytest


@pytest.fixture
def cgroup2(tmp_path):
    """A mounted cgroup v2 tree; groups made below it are removed again."""
    if os.geteuid() != 0:
        pytest.skip("mounting a cgroup tree needs root")
    folder = tmp_path / "cgroup2"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=False).returncode:
        pytest.skip("this kernel or container does not let us mount cgroup2")
    made = []

    def make(path):
        group = folder
        for part in path.strip("/").split("/"):
            group = group / part
            if not group.exists():
                group.mkdir()
                made.append(group)
        return group

    try:
        yield folder, make
    finally:
        for group in reversed(made):
            for _ in range(50):
                try:
                    group.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)
        subprocess.run(["umount", folder], check=False)
