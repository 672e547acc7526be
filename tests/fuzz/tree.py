"""Machines that have, between them, everything that the agent reads, each as a folder of files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.agent.played import Machine

POD = "0b3f8a6e_5f0e_4d3a_9c55_0f3a1f5b7c2d"
CONTAINER = "4f" * 32

GROUPS = (
    b"/",
    b"/system.slice/web.service",
    b"/user.slice/user-1000.slice/session-1.scope",
    b"/system.slice/slurmstepd.scope/job_7/step_0/user/task_0",
    b"/system.slice/slurmstepd.scope/s0123456789ABC/step_0",
    f"/kubepods.slice/kubepods-pod{POD}.slice/cri-containerd-{CONTAINER}.scope".encode(),
    b"/machine.slice/machine-qemu\\x2d1\\x2dvm.scope",
)
GPU_USERS = (101, 102)


@dataclass(frozen=True)
class Kind:
    """A kind of machine: which sensors it has.

    Args:
        zones: of RAPL: entry, name, watts.
        files: text by path; what every machine has is in FILES.
        driver: of the GPU that two of its processes have open; "": none.
    """

    name: str
    devices: frozenset[str]  # what is metered on it
    zones: tuple[tuple[str, str, float], ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""


# Whose files these are taken for: a captured tree's with cgroups of version 1 or 2, or the
# kernel's own, which may be read by a short cut (agent/use/members.py).
SYSTEMS = ((1, None), (2, None), (2, True))


def tree(root: Path, kind: Kind, version: int = 2, kernels: bool | None = None) -> Machine:
    """Files for the machine's sensors and every kind of workload; processes run."""
    machine = Machine(root, cpus=4, version=version, kernels=kernels)
    machine.irq_cores = machine.steal_cores = 0.1
    for entry, name, watts in kind.zones:
        machine.zone(entry, name, watts=watts, max_power_uw=200_000_000)
    for n, group in enumerate(GROUPS):
        machine.task(100 + n, b"work%d" % n, group, cores=0.2 * n)
        process = root / f"proc/{100 + n}"
        (process / "environ").write_bytes(
            b"SLURM_JOB_ID=7\0SLURM_JOB_ACCOUNT=climate\0CUDA_VISIBLE_DEVICES=0,1\0"
        )
        (process / "status").write_text("Name:\twork\nUid:\t0\t0\t0\t0\n")
        (process / "cmdline").write_bytes(b"slurmstepd: [7.0]\0")
    for path, text in {**FILES, **kind.files}.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if kind.driver:
        for n, pid in enumerate(GPU_USERS):
            folder = root / f"proc/{pid}"
            (folder / "fd").mkdir()
            (folder / "fdinfo").mkdir()
            (folder / "fd/5").symlink_to("/dev/dri/renderD128")
            said = HEAD.format(driver=kind.driver, client=n) + ENGINES[kind.driver]
            (folder / "fdinfo/5").write_text(said)
    return machine


HEAD = """pos:	0
flags:	02100002
mnt_id:	26
ino:	1234
drm-driver:	{driver}
drm-client-id:	{client}
drm-pdev:	0000:03:00.0
drm-client-name:	client{client}
"""
ENGINES = {
    "amdgpu": """drm-engine-gfx:	123456789 ns
drm-engine-compute:	123456789 ns
drm-engine-capacity-compute:	4
drm-memory-vram:	1024 KiB
""",
    "xe": """drm-cycles-rcs:	28257900
drm-total-cycles-rcs:	7655183225
drm-cycles-vcs:	0
drm-total-cycles-vcs:	7655183225
drm-engine-capacity-vcs:	2
drm-total-vram0:	0
""",
}

HWMON = "sys/class/hwmon"
CARD = "sys/class/drm/card0/device"
CRAY = "sys/cray/pm_counters"
KFD = "sys/class/kfd/kfd"
CPUS = "sys/devices/system/cpu"
AT = " 1690000000000000 us\n"


def _hwmon(number: int, **files: str) -> dict[str, str]:
    return {f"{HWMON}/hwmon{number}/{name}": text + "\n" for name, text in files.items()}


def _grace(socket: int) -> dict[str, str]:
    """The meters of one socket of NVIDIA Grace Hopper."""
    found: dict[str, str] = {}
    for n, (what, watts) in enumerate({"Module": 700, "CPU": 90, "SysIO": 20}.items()):
        found |= _hwmon(
            4 * socket + n,
            name="power_meter",
            power1_average=f"{watts}000000",
            power1_average_interval="50",
            power1_oem_info=f"{what} Power Socket {socket}",
        )
    return found


FILES = {
    "proc/sys/kernel/random/boot_id": "6b1f7b2e-0000-4000-8000-000000000000\n",
    "proc/loadavg": "0.50 0.40 0.30 2/345 106\n",
}

BLADE = Kind(
    "blade",
    frozenset({"platform", "cpu0", "dram0", "gpu:0000:03:00.0"}),
    files={
        f"{CRAY}/version": "3\n",
        f"{CRAY}/generation": "1\n",
        f"{CRAY}/startup": "1689000000000000\n",
        f"{CRAY}/freshness": "77\n",
        f"{CRAY}/energy": "123456 J" + AT,
        f"{CRAY}/power": "321 W" + AT,
        f"{CRAY}/cpu_energy": "23456 J" + AT,
        f"{CRAY}/memory_energy": "3456 J" + AT,
        f"{CRAY}/accel0_energy": "9456 J" + AT,
        f"{CARD}/vendor": "0x1002\n",
        f"{CARD}/device": "0x740c\n",
        f"{CARD}/uevent": "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n",
        f"{CARD}/hwmon/hwmon2/name": "amdgpu\n",
        f"{CARD}/hwmon/hwmon2/power1_input": "45000000\n",
        f"{CARD}/hwmon/hwmon2/in0_label": "vddgfx\n",
    },
    driver="amdgpu",
)

SERVER = Kind(
    "server",
    frozenset({"platform", "cpu0", "dram0", "gpu:a1b2c3d4e5f60718"}),
    zones=(
        ("intel-rapl:0", "package-0", 90),
        ("intel-rapl:0:0", "dram", 6),
        ("intel-rapl-mmio:0", "package-0", 90),
    ),
    files={
        **_hwmon(
            0,
            name="power_meter",
            power1_average="151000000",
            power1_average_interval="1000",
            power1_label="PSU1",
            power1_is_battery="0",
        ),
        **_hwmon(1, name="pfe1100", power1_input="80000000", power1_label="pin"),
        f"{HWMON}/hwmon1/device/measures/LNXSYSTM:00": "",
        f"{CARD}/vendor": "0x1002\n",
        f"{CARD}/unique_id": "a1b2c3d4e5f60718\n",
        f"{CARD}/uevent": "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n",
        f"{CARD}/gpu_busy_percent": "40\n",
        f"{CARD}/drm/renderD128/dev": "226:128\n",
        f"{CARD}/hwmon/hwmon2/name": "amdgpu\n",
        f"{CARD}/hwmon/hwmon2/power1_average": "45000000\n",
        f"{CARD}/hwmon/hwmon2/power1_cap_max": "300000000\n",
        f"{KFD}/topology/nodes/0/gpu_id": "0\n",
        f"{KFD}/topology/nodes/0/properties": "cpu_cores_count 4\nsimd_count 0\n",
        f"{KFD}/topology/nodes/1/gpu_id": "4321\n",
        f"{KFD}/topology/nodes/1/properties": (
            "cpu_cores_count 0\nsimd_count 416\nsimd_per_cu 4\nunique_id 11651590505119483672\n"
            "location_id 768\ndomain 0\n"
        ),
        # One process whose occupancy is told, and one of which only its queue is known.
        f"{KFD}/proc/101/vram_4321": "4096\n",
        f"{KFD}/proc/101/stats_4321/cu_occupancy": "52\n",
        f"{KFD}/proc/102/vram_4321": "0\n",
        f"{KFD}/proc/102/queues/0/gpuid": "4321\n",
    },
    driver="amdgpu",
)

CLIENT = Kind(
    "client",
    frozenset({"platform", "cpu0", "cpu1-die0", "gpu:0000:03:00.0"}),
    zones=(
        ("intel-rapl:0", "package-0", 60),
        ("intel-rapl:0:0", "core", 30),
        ("intel-rapl:1", "psys", 150),
        ("intel-rapl:2", "package-1-die-0", 30),
    ),
    files={
        f"{CARD}/vendor": "0x8086\n",
        f"{CARD}/uevent": "DRIVER=xe\nPCI_SLOT_NAME=0000:03:00.0\n",
        f"{CARD}/hwmon/hwmon2/name": "xe\n",
        f"{CARD}/hwmon/hwmon2/energy1_input": "123456789\n",
        f"{CARD}/hwmon/hwmon2/energy1_label": "card\n",
        f"{CARD}/hwmon/hwmon2/energy2_input": "23456789\n",
        f"{CARD}/hwmon/hwmon2/energy2_label": "pkg\n",
        f"{CARD}/hwmon/hwmon2/power1_rated_max": "150000000\n",
        "proc/cpuinfo": "".join(
            f"processor\t: {n}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 158\n"
            "model name\t: Intel(R) Core(TM) i3-8100 CPU @ 3.60GHz\nphysical id\t: 0\n"
            "siblings\t: 4\n\n"
            for n in range(4)
        ),
    },
    driver="xe",
)

GRACE = Kind(
    "grace",
    frozenset({"platform", "cpu0", "cpu1"}),
    files={
        **_grace(0),
        **_grace(1),
        "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n\n",
    },
)

# An energy counter of the whole; processors that nobody meters, in a virtual machine.
VM = Kind(
    "vm",
    frozenset({"platform", "cpu0"}),
    files={
        **_hwmon(0, name="ibmpowernv", energy1_input="123456789", energy1_label="System"),
        "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
        "sys/class/dmi/id/product_name": "m5.xlarge\n",
        "proc/cpuinfo": (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n"
            "model name\t: AMD EPYC\nphysical id\t: 0\nflags\t\t: fpu hypervisor\n\n"
        ),
        **{f"{CPUS}/cpu{n}/cpufreq/scaling_cur_freq": "1800000\n" for n in range(2)},
        **{f"{CPUS}/cpu{n}/cpufreq/cpuinfo_max_freq": "3600000\n" for n in range(2)},
    },
)

KINDS = (BLADE, SERVER, CLIENT, GRACE, VM)
