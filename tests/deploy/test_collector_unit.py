"""deploy/systemd/joulegram-collector.service is sound and hardened; its command can be run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_agent_unit import analyze
from tests.servers import joulegram

UNIT = Path(__file__).resolve().parents[2] / "deploy/systemd/joulegram-collector.service"
EXPOSURE_MAX = 2.0  # of 10; it listens, and needs no right at all


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, its program one that is here."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub("(?m)^ExecStart=[^ ]+", f"ExecStart={sys.executable}", UNIT.read_text()))
    return copy


def test_systemd_understands_every_line(unit: Path) -> None:
    assert analyze("verify", "--man=no", unit) == ""


def test_it_is_exposed_no_more_than_it_must_be(unit: Path) -> None:
    said = analyze("security", "--offline=yes", "--no-pager", unit)
    assert float(said.partition("exposure level for")[2].split()[1]) <= EXPOSURE_MAX, said


def test_its_command_is_one_that_the_command_line_takes() -> None:
    command = re.search("(?m)^ExecStart=[^ ]*/joulegram collector (.*)", UNIT.read_text())
    assert command is not None
    flags = re.findall(r"--[a-z-]+", command[1])
    taken = subprocess.run(
        joulegram("collector", "--help"), capture_output=True, text=True, check=True
    )
    assert flags and all(flag in taken.stdout for flag in flags)
