"""`make replay`, some of it: right answers come out right, and wrong ones are called wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from replay.case import Part
from replay.cases import CASES

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    1: "wraps", 4: "psys", 6: "pid", 12: "Slurm", 28: "moves", 32: "kernel threads",
}  # fmt: skip


def replay(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "replay", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280,
    )  # fmt: skip


def test_cases_come_out_right(tmp_path: Path) -> None:
    output = tmp_path / "replay.json"
    done = replay(*QUICK, "--jobs", 6, "--json", output)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    found: list[dict[str, Any]] = json.loads(output.read_text())
    assert [entry["case"].split()[0] for entry in found] == list(map(str, QUICK))
    for entry, about in zip(found, QUICK.values(), strict=True):
        assert set(entry) == {"case", "right", "got", "verdict"}
        assert about in entry["case"]
        assert entry["verdict"] == "right"
    assert found[0]["right"] == found[0]["got"] == "energy: 1328850 uJ; coverage: 1"
    for word in ("case", "right", "got", "verdict", "6 of 6 right"):
        assert word in done.stdout


def test_a_case_that_nobody_knows_is_named_with_those_there_are() -> None:
    done = replay("perpetual motion")
    assert done.returncode == 2
    assert "no case perpetual motion" in done.stdout
    assert "16 a counter goes backwards" in done.stdout


def test_every_golden_case_is_there_once() -> None:
    assert [case.number for case in CASES] == list(range(1, 35))


@pytest.mark.parametrize(
    ("part", "holds"),
    [
        (Part("", 100, 101.0, within=2.0), True),
        (Part("", 100, 103.0, within=2.0), False),
        (Part("", 100, float("nan"), within=2.0), False),
        (Part("", 7, 7), True),
        (Part("", "cpu0", "cpu0 cpu1"), False),
        (Part("", "7", 7), False),
    ],
)
def test_what_is_further_off_than_it_may_be_is_wrong(part: Part, holds: bool) -> None:
    assert part.holds == holds
