"""DCMI through the installed programs: what they print, and how they fail."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.clock import SystemClock
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.bmc import ipmi
from joulegram.agent.sensors.bmc.background import SlowPlatform
from joulegram.agent.sensors.sensor import Sample
from tests.agent.played import Clock

FREEIPMI = """\
Current Power                        : 164 Watts
Minimum Power over sampling duration : 48 watts
Maximum Power over sampling duration : 361 watts
Average Power over sampling duration : 157 watts
Time Stamp                           : 12/29/2023 - 08:58:00
Statistics reporting time period     : 1473439000 milliseconds
Power Measurement                    : Active
"""
IPMITOOL = """

    Instantaneous power reading:                    50 Watts
    Minimum during sampling period:                  6 Watts
    Maximum during sampling period:                304 Watts
    Average power reading over sample period:       49 Watts
    IPMI timestamp:                           Thu Feb 15 08:36:01 2024
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   activated


"""
LATER_IPMITOOL = """\
Instantaneous power reading              : 214      Watts
Minimum during sampling period           : 2        Watts
Maximum during sampling period           : 468      Watts
Average power reading over sample period : 184      Watts
IPMI timestamp                           : 2024-05-05 13:06:44 UTC
Sampling period                          : 1000 Milliseconds
Power reading state is                   : activated
"""


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def printing(folder: Path, name: str, output: str) -> Path:
    (folder / f"{name}.txt").write_text(output)
    return program(folder, name, f"cat '{folder}/{name}.txt'")


def asking(folder: Path, within_s: float = 10.0) -> ipmi.Dcmi:
    return ipmi.Dcmi(SystemClock(), ipmi.programs(str(folder)), within_s)


@pytest.mark.parametrize(
    ("output", "power_w"), [(FREEIPMI, 164), (IPMITOOL, 50), (LATER_IPMITOOL, 214)]
)
def test_the_power_of_each_program(output: str, power_w: int) -> None:
    assert ipmi.watts(output.encode(), "it") == power_w
    assert ipmi.watts(output.replace("\n", "\r\n").encode(), "it") == power_w


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (FREEIPMI.replace("Active", "Not Available"), "power measurement is not available"),
        (IPMITOOL.replace("activated", "deactivated"), "power measurement is deactivated"),
        (FREEIPMI.replace("164", "0"), "0 W cannot be a running node's"),
        (IPMITOOL.replace("50 Watts", "500000 Watts"), "500000 W cannot be"),
        (IPMITOOL.replace("50 Watts", "-5 Watts"), "printed no power"),
        (IPMITOOL.replace("50 Watts", "50garbage Watts"), "printed no power"),
        (FREEIPMI[:200], "printed no power"),  # cut off before the state, which says it is true
        ("\n    DCMI request failed because: Invalid command (c1)", "knows no DCMI"),
        ("ipmi_cmd_dcmi_get_power_reading: command invalid or unsupported\n", "knows no DCMI"),
        ("", "nothing at all"),
    ],
)
def test_no_power_says_why(output: str, complaint: str) -> None:
    with pytest.raises(SensorFailed, match=complaint):
        ipmi.watts(output.encode(), "it")


@pytest.mark.parametrize(
    "output",
    [
        "Could not open device at /dev/ipmi0 or /dev/ipmi/0 or /dev/ipmidev/0: Permission denied\n",
        "ipmi_ctx_open_inband: permission denied\n",
    ],
)
def test_who_may_not_ask_is_told_what_to_do(output: str) -> None:
    with pytest.raises(SensorDenied, match=r"as root, or let its user read and write /dev/ipmi0"):
        ipmi.watts(output.encode(), "it")


@given(
    st.binary(max_size=300)
    | st.text(st.sampled_from("\n\t :.0159aAdeinoprtuvwPWC"), max_size=200).map(str.encode)
)
def test_any_output_is_a_power_or_an_explanation(output: bytes) -> None:
    for said in (output, FREEIPMI.encode()[: len(output)] + output, output + IPMITOOL.encode()):
        try:
            assert 0 < ipmi.watts(said, "it") <= ipmi.MAX_W
        except (SensorFailed, SensorDenied) as exc:
            assert len(str(exc)) < 500 and str(exc).isprintable()


def test_the_programs_are_asked_as_their_manuals_say(tmp_path: Path) -> None:
    for name in ("ipmi-dcmi", "ipmitool"):
        program(tmp_path, name, f'echo "$0 $* $LC_ALL" >> {tmp_path}/asked; exit 1')
    dcmi = asking(tmp_path)
    for _ in range(3):
        with pytest.raises(SensorFailed):
            dcmi.ask()
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"{tmp_path}/ipmi-dcmi --get-system-power-statistics C",
        f"{tmp_path}/ipmitool dcmi power reading C",  # the first did not do, so the other
        f"{tmp_path}/ipmi-dcmi --get-system-power-statistics C",
    ]


def test_a_sample_is_of_the_time_in_between(tmp_path: Path) -> None:
    printing(tmp_path, "ipmitool", IPMITOOL)
    dcmi = asking(tmp_path)
    before_ns = time.monotonic_ns()
    sample = dcmi.ask()
    assert sample.power_uw == 50_000_000
    assert before_ns < sample.at_ns < time.monotonic_ns()


def test_the_one_that_works_is_kept(tmp_path: Path) -> None:
    program(tmp_path, "ipmi-dcmi", "echo 'ipmi_ctx_find_inband: could not find inband device'")
    printing(tmp_path, "ipmitool", IPMITOOL)
    dcmi = asking(tmp_path)
    with pytest.raises(SensorFailed, match="could not find inband device"):
        dcmi.ask()
    assert [dcmi.ask().power_uw for _ in range(3)] == [50_000_000] * 3


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(SensorFailed, match="Install freeipmi-tools or ipmitool"):
        ipmi.Dcmi(Clock(), []).ask()


def test_a_program_that_hangs_is_ended_with_all_its_children(tmp_path: Path) -> None:
    program(tmp_path, "ipmitool", f"sleep 60 & echo $! > {tmp_path}/child; wait")
    dcmi = asking(tmp_path, within_s=0.5)
    with pytest.raises(SensorFailed, match=r"did not end within 0\.5 s"):
        dcmi.ask()
    child = int((tmp_path / "child").read_text())
    for _ in range(500):
        if not _alive(child):
            break
        time.sleep(0.01)
    assert not _alive(child)


def test_a_program_that_prints_without_end_is_ended(tmp_path: Path) -> None:
    program(tmp_path, "ipmitool", "exec yes 'Instantaneous power reading: 5 Watts'")
    with pytest.raises(SensorFailed, match="printed without end"):
        asking(tmp_path).ask()


def test_a_program_that_cannot_be_started_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "ipmitool"
    path.write_bytes(b"\x7fELF nonsense")
    path.chmod(0o755)
    with pytest.raises(SensorFailed, match="cannot start"):
        asking(tmp_path).ask()


def test_a_controller_is_expected_where_the_kernel_shows_one(tmp_path: Path) -> None:
    sysfs, dev = tmp_path / "sys", tmp_path / "dev"
    dev.mkdir()
    assert not ipmi.likely(sysfs, dev)
    (dev / "ipmi0").touch()
    assert ipmi.likely(sysfs, dev)
    assert not ipmi.likely(sysfs), "a captured tree is not this machine"
    (sysfs / "class/ipmi/ipmi0").mkdir(parents=True)
    assert ipmi.likely(sysfs)


def test_the_platform_is_read_from_memory(tmp_path: Path) -> None:
    """The tick gets its answer while the program still runs."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    (tmp_path / "output").write_text(IPMITOOL)
    program(tmp_path, "ipmitool", f"read go < {fifo}; cat {tmp_path}/output")
    sensor = ipmi.ipmi_power(asking(tmp_path))
    assert (sensor.device, sensor.component, sensor.quality) == ("platform", "other", "derived")
    try:
        with pytest.raises(SensorFailed, match="not answered yet"):
            sensor.sample()
        fifo.write_text("go\n")  # opens when the program reads
        assert _eventually(sensor).power_uw == 50_000_000
    finally:
        sensor.close()


def _eventually(sensor: SlowPlatform) -> Sample:
    for _ in range(1000):
        try:
            return sensor.sample()
        except SensorFailed:
            time.sleep(0.01)
    return sensor.sample()


def _alive(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
