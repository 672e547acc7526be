"""A machine that has a little of everything the agent reads, as a folder of files."""

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


def tree(root: Path, version: int = 2) -> Machine:
    """Files for every sensor and every kind of workload; RAPL draws power, processes run."""
    machine = Machine(root, cpus=4, version=version)
    machine.zone("intel-rapl:0", "package-0", watts=90, max_power_uw=200_000_000)
    machine.zone("intel-rapl:0:0", "dram", watts=6)
    machine.zone("intel-rapl:1", "psys", watts=150)
    machine.zone("intel-rapl-mmio:0", "package-0", watts=90)
    for n, group in enumerate(GROUPS):
        machine.task(100 + n, b"work%d" % n, group, cores=0.2 * n)
        (root / f"proc/{100 + n}/environ").write_bytes(
            b"SLURM_JOB_ID=7\0SLURM_JOB_ACCOUNT=climate\0CUDA_VISIBLE_DEVICES=0,1\0"
        )
    for path, text in FILES.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for n, client in enumerate(("a", "b")):
        folder = root / f"proc/{101 + n}"
        (folder / "fd").mkdir()
        (folder / "fdinfo").mkdir()
        (folder / "fd/5").symlink_to("/dev/dri/renderD128")
        (folder / "fdinfo/5").write_text(FDINFO.format(client=n, busy=123456789, name=client))
    return machine


FDINFO = """pos:	0
flags:	02100002
mnt_id:	26
ino:	1234
drm-driver:	amdgpu
drm-client-id:	{client}
drm-pdev:	0000:03:00.0
drm-client-name:	{name}
drm-engine-gfx:	{busy} ns
drm-engine-compute:	{busy} ns
drm-engine-capacity-compute:	4
drm-memory-vram:	1024 KiB
"""

HWMON = "sys/class/hwmon"
CARD = "sys/class/drm/card0/device"
CRAY = "sys/cray/pm_counters"

FILES = {
    f"{HWMON}/hwmon0/name": "power_meter\n",
    f"{HWMON}/hwmon0/power1_average": "151000000\n",
    f"{HWMON}/hwmon0/power1_average_interval": "1000\n",
    f"{HWMON}/hwmon1/name": "power_meter\n",
    f"{HWMON}/hwmon1/power1_average": "80000000\n",
    f"{HWMON}/hwmon1/device/power1_oem_info": "CPU Power Socket 0\n",
    f"{HWMON}/hwmon1/power1_oem_info": "CPU Power Socket 0\n",
    f"{CARD}/vendor": "0x1002\n",
    f"{CARD}/unique_id": "a1b2c3d4e5f60718\n",
    f"{CARD}/uevent": "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n",
    f"{CARD}/hwmon/hwmon2/name": "amdgpu\n",
    f"{CARD}/hwmon/hwmon2/power1_average": "45000000\n",
    f"{CARD}/hwmon/hwmon2/power1_cap_max": "300000000\n",
    "sys/class/kfd/kfd/topology/nodes/1/gpu_id": "4321\n",
    "sys/class/kfd/kfd/topology/nodes/1/properties": (
        "unique_id 11651590505119483672\nlocation_id 768\n"
    ),
    "sys/class/kfd/kfd/proc/101/vram_4321": "4096\n",
    f"{CRAY}/version": "3\n",
    f"{CRAY}/generation": "1\n",
    f"{CRAY}/freshness": "77\n",
    f"{CRAY}/energy": "123456 J 1690000000000000 us\n",
    f"{CRAY}/power": "321 W 1690000000000000 us\n",
    f"{CRAY}/cpu_energy": "23456 J 1690000000000000 us\n",
    "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
    "sys/class/dmi/id/product_name": "m5.xlarge\n",
    "proc/cpuinfo": (
        "processor\t: 0\nmodel name\t: AMD EPYC 7763 64-Core Processor\nphysical id\t: 0\n\n"
    ),
    "proc/sys/kernel/random/boot_id": "6b1f7b2e-0000-4000-8000-000000000000\n",
}
