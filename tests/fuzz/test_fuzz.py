"""Whatever the files hold: the agent's loop goes on and no frame breaks conservation.

`make fuzz` does the same for as long as one likes, guided by coverage (tests/fuzz/guided.py).
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import fresh, play

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*"))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=2_000))
def test_no_file_stops_the_loop_or_breaks_conservation(tmp_path, data):
    play(fresh(tmp_path / "machine"), data)


@pytest.mark.parametrize("kept", CORPUS, ids=lambda path: path.name)
def test_what_was_once_found_holds(tmp_path, kept):
    play(fresh(tmp_path / "machine"), kept.read_bytes())


def test_an_unspoilt_machine_is_metered(tmp_path):
    """Else the tests above would hold for an agent that reads nothing."""
    frames = play(fresh(tmp_path / "machine"), b"")
    devices = {device.name: device for device in frames[1].devices}
    assert devices["cpu0"].energy_uj == pytest.approx(90e6, rel=0.02)
    assert {"dram0", "platform"} <= devices.keys()
    assert {w.kind for w in frames[1].workloads} >= {"slurm", "kubernetes", "vm", "systemd", "user"}
