"""`joulegram check`: each line says what, why and what to do, whatever the machine lacks."""

import contextlib
import threading
import tomllib

import pytest

from joulegram.agent import check, findings
from joulegram.agent.findings import BESIDE, DENIED, FAILS, MISSING, MODELLED, WORKS, Finding
from joulegram.agent.floors import LEARN_MS, Floors
from joulegram.agent.meter import Meter
from tests.agent.played import Machine
from tests.agent.test_hwmon import as_nobody
from tests.agent.test_machine import CRAY, METER, write
from tests.redfish_server import PASSWORD, USER, redfish_server


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def energy(machine, **config):
    """The lines on energy, by what they are of."""
    settings = machine.config(state=machine.root / "state", **config)
    found: dict[str, list[Finding]] = {}
    for finding in findings.energy(settings):
        found.setdefault(finding.what.removeprefix("energy: "), []).append(finding)
    return found


def states(lines):
    return [line.state for line in lines]


def test_a_machine_without_any_sensor_is_a_page_one_can_act_on(machine, capsys):
    assert check.run(machine.config(state=machine.root / "state", docker_socket="")) == 0
    page = capsys.readouterr().out
    assert "modprobe intel_rapl_msr" in page
    assert "modelled" in page and "agent.tdp_w" in page
    assert page.index("load model") < page.index("RAPL")
    lacking = [line for line in page.splitlines() if line.strip().startswith(("missing", "fails"))]
    acted_on = page.count("→")
    assert acted_on >= len(lacking) - 1  # the driver's own words say what to do for NVIDIA


def test_a_procfs_without_processes_does_not_work(machine):
    """An empty folder can be listed; nobody's energy is told by it."""
    processes = next(iter(findings.owners(machine.config(docker_socket=""))))
    assert processes.state == FAILS
    assert "none in" in processes.why and "--procfs" in processes.remedy
    machine.task(10, cores=1)
    processes = next(iter(findings.owners(machine.config(docker_socket=""))))
    assert (processes.state, processes.remedy) == (WORKS, "")


def test_counters_that_work_say_their_floor_and_what_counts_beside_them(machine):
    machine.zone("intel-rapl:0", "package-0")
    machine.zone("intel-rapl:1", "psys")
    write(machine.root, CRAY | METER)
    found = energy(machine, idle_w={"cpu0": 12.5})
    assert states(found["cpu0"]) == [WORKS, BESIDE]
    assert "12.5 W, configured" in found["cpu0"][0].why
    assert states(found["platform"]) == [WORKS, BESIDE, BESIDE]
    assert "Cray node" in found["platform"][0].why
    assert (
        "no idle floor yet" in found["dram0"][0].why and "agent.idle_w" in found["dram0"][0].remedy
    )
    assert "load model" not in found


def test_what_it_says_to_set_can_be_pasted(machine):
    device = machine.root / "sys/devices/pci0000:00/0000:03:00.0"
    files = {"vendor": "0x8086\n", "uevent": "PCI_SLOT_NAME=0000:03:00.0\n"}
    files |= {"hwmon/hwmon0/name": "xe\n", "hwmon/hwmon0/energy1_input": "5\n"}
    write(device, files)
    (machine.root / "sys/class/drm/card0").mkdir(parents=True)
    (machine.root / "sys/class/drm/card0/device").symlink_to(device)
    machine.zone("intel-rapl:0", "package-0-die-1")
    found = energy(machine)
    for name in ("cpu0-die1", "gpu:0000:03:00.0"):
        said = found[name][0].remedy.partition("agent.idle_w: ")[2].partition(". Until")[0]
        assert tomllib.loads(said.replace("WATTS", "12.5")) == {name: 12.5}


def test_a_learnt_floor_says_how_it_was_learnt(machine):
    machine.zone("intel-rapl:0", "package-0")
    (machine.root / "state").mkdir()
    floors = Floors(machine.root / "state/floors.json", "n1")
    floors.note("cpu0", 0, LEARN_MS, LEARN_MS * 21_500)
    floors.save()
    assert "21.5 W, learnt: lowest window mean of 4 h" in energy(machine)["cpu0"][0].why


def test_a_counter_that_cannot_be_read_says_why(machine):
    zone = machine.zone("intel-rapl:0", "package-0")
    (zone.folder / "energy_uj").write_text("nonsense")
    found = energy(machine)
    assert states(found["cpu0"]) == [FAILS]
    assert found["cpu0"][0].remedy


def test_a_card_without_a_sensor_is_named(machine):
    write(
        machine.root,
        {
            "sys/class/drm/card0/device/vendor": "0x10de\n",
            "sys/class/drm/card0/device/uevent": "PCI_SLOT_NAME=0000:3b:00.0\n",
        },
    )
    (line,) = [f for f in findings.energy(machine.config()) if f.what == "gpu: card0"]
    assert line.state == MISSING and "0000:3b:00.0" in line.why


def asking(machine, bmc, password=PASSWORD):
    """The lines on energy of a machine whose management controller wants a session."""
    bmc.asks = "session"
    file = machine.root / "password"
    file.touch(0o600)
    file.write_text(password)
    return energy(
        machine, redfish_url=bmc.url, redfish_user=USER, redfish_password_file=file, ipmi="off"
    )


@contextlib.contextmanager
def drawing(zone, every_s=0.05):
    """Its counter counts while the context lasts."""
    stop = threading.Event()

    def count():
        while not stop.wait(every_s):
            zone.advance(every_s)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def posts(bmc):
    return [one for one in bmc.asked if one.startswith("POST")]


@pytest.mark.parametrize("slow_s", [0.0, 0.15])
def test_a_management_controller_is_asked_once_and_its_session_ended(machine, slow_s):
    """However slow: by one thread alone, which logs in once and out once."""
    with redfish_server() as bmc:
        bmc.slow_s = slow_s
        found = asking(machine, bmc)
        assert states(found["platform"]) == [WORKS]
        assert found["platform"][0].why == "Redfish, 344.0 W now, integrated"
        assert len(posts(bmc)) == bmc.opened == 1 and bmc.sessions == {}
        assert not [thread for thread in threading.enumerate() if thread.name == "Redfish"]


def test_a_refused_password_is_sent_once(machine):
    """Each time brings the account nearer to being locked."""
    with redfish_server() as bmc:
        found = asking(machine, bmc, "not-the-one")
        assert states(found["platform"]) == [DENIED]
        assert "refuses user" in found["platform"][0].why
        assert len(posts(bmc)) == 1


def test_a_management_controller_that_counts_beside_another_meter_is_asked_once(machine):
    write(machine.root, CRAY)
    with redfish_server() as bmc:
        found = asking(machine, bmc)
        assert states(found["platform"]) == [WORKS, BESIDE]
        assert len(posts(bmc)) == 1 and bmc.sessions == {}


def test_the_watts_of_a_counter_are_not_those_of_a_slow_neighbours_time(machine):
    zone = machine.zone("intel-rapl:0", "package-0")
    zone.watts = 100
    with redfish_server() as bmc, drawing(zone):
        bmc.slow_s = 0.15
        found = asking(machine, bmc)
    watts = float(found["cpu0"][0].why.partition(", ")[2].partition(" W now")[0])
    assert watts < 200, "half a second is looked at, not all answers of 0.15 s"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([Finding("energy: cpu0", WORKS, "")], "measured: cpu0"),
        ([Finding("energy: load model", MODELLED, "")], "load model"),
        ([Finding("energy: cpu0", DENIED, "")], "Nothing can be metered"),
    ],
)
def test_the_verdict_says_what_the_numbers_will_be(lines, said):
    assert said in check.verdict(lines)


def test_a_collector_that_is_not_there_and_a_spool_that_may_not_be(machine):
    (machine.root / "file").write_text("")
    settings = machine.config(collector="127.0.0.1:9", state=machine.root / "file/state")
    way = {f.what: f for f in findings.way(settings)}
    assert way["collector"].state == MISSING and "joulegram up" in way["collector"].remedy
    assert way["spool"].state == DENIED and "--state" in way["spool"].remedy


def test_a_spool_behind_a_folder_that_may_not_be_entered_is_a_line_of_the_page(machine):
    closed = machine.root / "closed"
    closed.mkdir(mode=0)
    way = as_nobody(lambda: list(findings.way(machine.config(state=closed / "below/state"))))
    assert way[0].state == DENIED and "--state" in way[0].remedy


def test_a_cgroup_tree_that_may_not_be_entered_is_a_line_of_the_page(machine):
    closed = machine.root / "closed"
    closed.mkdir(mode=0)
    settings = machine.config(cgroupfs=closed, docker_socket="", slurm="off")
    found = {f.what: f for f in as_nobody(lambda: list(findings.owners(settings)))}
    assert found["cgroups"].state == MISSING and str(closed) in found["cgroups"].why


@pytest.mark.parametrize("below", ["", "below/sys"])
def test_a_sysfs_that_may_not_be_entered_is_a_line_of_the_page_and_ends_no_meter(machine, below):
    closed = machine.root / "closed"
    closed.mkdir(mode=0)
    settings = machine.config(sysfs=closed / below, state=machine.root / "state", slurm="off")
    found = {f.what: f for f in as_nobody(lambda: list(findings.energy(settings)))}
    assert found["sysfs"].state == DENIED
    assert str(closed / below) in found["sysfs"].why and "--sysfs" in found["sysfs"].remedy
    assert "energy: load model" in found

    def devices():
        with contextlib.closing(Meter(settings)) as meter:
            return list(meter.devices.metered)

    assert as_nobody(devices) == ["cpu0"]
