"""The thermal design power that the load model scales, and from where it is known.

Reads  <procfs>/cpuinfo, <sysfs>/class/dmi/id/{sys_vendor,product_name}, cpu_tdp.csv beside this
Format https://docs.kernel.org/filesystems/proc.html

A physical machine has its packages' TDP. A virtual one has a share: its CPUs, out of the
threads that a package of that processor has. Clouds hide the model; its generation is told by
family and model number, by the name that QEMU gives it, or by the instance type.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from joulegram.agent.sensors.load.cpuinfo import CpuInfo
from joulegram.agent.textfile import printable

TABLE = Path(__file__).with_name("cpu_tdp.csv")
PACKAGES_MAX = 64
LINE_MAX = 4096


@dataclass(frozen=True, slots=True)
class Generation:
    """A server processor's generation: its largest usual model, from the maker's data sheet."""

    name: str
    tdp_w: float
    threads: int
    smt: int = 2  # threads of a core

    @property
    def w_per_thread(self) -> float:
        return self.tdp_w / self.threads


SANDY_BRIDGE = Generation("Xeon E5-2690 (Sandy Bridge)", 135, 16)
IVY_BRIDGE = Generation("Xeon E5-2697 v2 (Ivy Bridge)", 130, 24)
HASWELL = Generation("Xeon E5-2699 v3 (Haswell)", 145, 36)
BROADWELL = Generation("Xeon E5-2699 v4 (Broadwell)", 145, 44)
SKYLAKE = Generation("Xeon Platinum 8180 (Skylake)", 205, 56)
CASCADE_LAKE = Generation("Xeon Platinum 8280 (Cascade Lake)", 205, 56)
ICE_LAKE = Generation("Xeon Platinum 8380 (Ice Lake)", 270, 80)
SAPPHIRE_RAPIDS = Generation("Xeon Platinum 8480+ (Sapphire Rapids)", 350, 112)
EMERALD_RAPIDS = Generation("Xeon Platinum 8592+ (Emerald Rapids)", 350, 128)
GRANITE_RAPIDS = Generation("Xeon 6980P (Granite Rapids)", 500, 256)
SIERRA_FOREST = Generation("Xeon 6780E (Sierra Forest)", 330, 144, smt=1)
NAPLES = Generation("EPYC 7601 (Naples)", 180, 64)
ROME = Generation("EPYC 7742 (Rome)", 225, 128)
MILAN = Generation("EPYC 7763 (Milan)", 280, 128)
GENOA = Generation("EPYC 9654 (Genoa)", 360, 192)
BERGAMO = Generation("EPYC 9754 (Bergamo)", 360, 256)
TURIN = Generation("EPYC 9755 (Turin)", 500, 256)
TURIN_DENSE = Generation("EPYC 9965 (Turin dense)", 500, 384)
ALTRA = Generation("Ampere Altra Q80-30 (Neoverse N1)", 210, 80, smt=1)
# Of Neoverse V2 servers NVIDIA's alone has a published TDP: 500 W for a Grace superchip of 144
# cores, its memory included.
GRACE = Generation("NVIDIA Grace (Neoverse V2)", 500, 144, smt=1)

# Where nothing is known: the geometric mean of the generations above, 2.5 W, and of client
# processors (65 W / 16 threads: 4 W) is about 3 W per logical CPU.
DEFAULT_W_PER_CPU = 3.0

# Model numbers of family 6; Linux, arch/x86/include/asm/intel-family.h.
_INTEL = {
    45: SANDY_BRIDGE,
    62: IVY_BRIDGE,
    63: HASWELL,
    79: BROADWELL,
    86: BROADWELL,
    85: SKYLAKE,
    106: ICE_LAKE,
    108: ICE_LAKE,
    143: SAPPHIRE_RAPIDS,
    207: EMERALD_RAPIDS,
    173: GRANITE_RAPIDS,
    174: GRANITE_RAPIDS,
    175: SIERRA_FOREST,
}
_CASCADE_LAKE_STEPPING = 5  # model 85 from this stepping on
# (family, first model, last model); Linux, arch/x86/kernel/cpu/amd.c and arch/x86/events/amd.
_AMD = (
    (0x17, 0x00, 0x0F, NAPLES),
    (0x17, 0x30, 0x3F, ROME),
    (0x19, 0x00, 0x0F, MILAN),
    (0x19, 0x10, 0x1F, GENOA),
    (0x19, 0xA0, 0xAF, BERGAMO),
    (0x1A, 0x00, 0x0F, TURIN),
    (0x1A, 0x10, 0x1F, TURIN_DENSE),
)
# Part numbers; Linux, arch/arm64/include/asm/cputype.h.
_ARM = {0xD0C: ALTRA, 0xD4F: GRACE}
# Nobody publishes the TDP of a server with one of these: Amazon's Graviton3 and Microsoft's Cobalt
# 100 (2026-11) are sold by the hour. They have the default.
_UNRATED = {0xD40: "Neoverse V1", 0xD49: "Neoverse N2", 0xD8E: "Neoverse N3"}
# What QEMU and libvirt call a processor in a guest.
_NAMED = (
    ("sandybridge", SANDY_BRIDGE),
    ("sandy bridge", SANDY_BRIDGE),
    ("e312xx", SANDY_BRIDGE),
    ("ivybridge", IVY_BRIDGE),
    ("ivy bridge", IVY_BRIDGE),
    ("haswell", HASWELL),
    ("broadwell", BROADWELL),
    ("cascadelake", CASCADE_LAKE),
    ("cascade lake", CASCADE_LAKE),
    ("skylake", SKYLAKE),
    ("icelake", ICE_LAKE),
    ("ice lake", ICE_LAKE),
    ("sapphirerapids", SAPPHIRE_RAPIDS),
    ("sapphire rapids", SAPPHIRE_RAPIDS),
    ("emeraldrapids", EMERALD_RAPIDS),
    ("graniterapids", GRANITE_RAPIDS),
    ("sierraforest", SIERRA_FOREST),
    ("epyc-rome", ROME),
    ("epyc-milan", MILAN),
    ("epyc-genoa", GENOA),
    ("epyc-turin", TURIN),
)

# Instance families -> generation, from the providers' pages (2026-11). Where a family runs on
# several generations, the most recent one listed. A vCPU is a thread, or a core where marked.
_THREAD, _CORE = False, True
_FAMILIES: tuple[tuple[str, Generation, bool], ...] = (
    # Amazon EC2
    (r"(c3|m3|r3|i2)", IVY_BRIDGE, _THREAD),
    (r"(c4|m4|d2)", HASWELL, _THREAD),
    (r"(t2|r4|i3|x1e?|p2|p3|g3s?|h1)", BROADWELL, _THREAD),
    (r"(m5|r5|c5|t3|i3en|z1d|m5zn|c5n|p3dn|g4dn|inf1|p4)[bdne]*", CASCADE_LAKE, _THREAD),
    (r"(m5a|r5a|t3a)d?", NAPLES, _THREAD),
    (r"(c5a|g5)d?", ROME, _THREAD),
    (r"(m6i|c6i|r6i|x2i|i4i|x2ied|x2idn)[dn]*", ICE_LAKE, _THREAD),
    (r"(m6a|c6a|r6a|hpc6a|g6|p5)", MILAN, _THREAD),
    (r"(m7i|c7i|r7i|i7ie|p5e|p5en)(-flex|[ndz]|iz)*", SAPPHIRE_RAPIDS, _THREAD),
    (r"(m7a|c7a|r7a|hpc7a)", GENOA, _CORE),
    (r"(m8i|c8i|r8i)(-flex|[dn])*", GRANITE_RAPIDS, _THREAD),
    (r"(m8a|c8a|r8a)[dn]*", TURIN, _CORE),
    # Graviton2, of Altra's cores. Graviton3 (c7g...) is in _UNRATED.
    (r"(t4g|[mcrx]6g|im4gn|is4gen|x2gd|g5g|i4g)[den]*", ALTRA, _CORE),
    (r"([mcrx]8gd?|i8g)[bn]*", GRACE, _CORE),
    # Google Cloud
    (r"(e2|n1)", BROADWELL, _THREAD),
    (r"(n2|c2|m2)", CASCADE_LAKE, _THREAD),
    (r"(n2d)", ROME, _THREAD),
    (r"(c2d)", MILAN, _THREAD),
    (r"(t2d)", MILAN, _CORE),
    (r"(c3|a3|h3|z3)", SAPPHIRE_RAPIDS, _THREAD),
    (r"(c3d)", GENOA, _THREAD),
    (r"(n4|c4)", EMERALD_RAPIDS, _THREAD),
    (r"(c4d|n4d)", TURIN, _THREAD),
    (r"(t2a)", ALTRA, _CORE),
    (r"(c4a)", GRACE, _CORE),
)
# Google's own names have a "-" after the family (c3-standard-8), Amazon's a "." (c3.large).
_AMAZON_FAMILIES = 14
_AZURE = re.compile(r"standard_([a-z]{1,3})\d+(?:-\d+)?([a-z]*)(?:_[a-z0-9]+)*?(?:_v(\d+))?$")


@dataclass(frozen=True, slots=True)
class Rating:
    """The TDP that is this machine's, W. Where only a share per CPU is known, CPUs may change."""

    basis: str  # for people: how much, and from where
    tdp_w: float = 0.0
    w_per_cpu: float = 0.0

    def of(self, cpus: int) -> float:
        return self.tdp_w or self.w_per_cpu * max(1, cpus)


UNKNOWN = Rating(f"TDP guessed as {DEFAULT_W_PER_CPU:g} W per CPU", w_per_cpu=DEFAULT_W_PER_CPU)


def rating_of(sysfs: Path, procfs: Path, tdp_w: float = 0.0, instance_type: str = "") -> Rating:
    """What this machine may draw by design; the surest source first. Never raises.

    Args:
        tdp_w: what the operator says; > 0 wins.
        instance_type: the cloud's name for this machine ("m5.xlarge"), where DMI does not say it.
    """
    if tdp_w > 0:
        return Rating(f"TDP {tdp_w:g} W, configured", tdp_w=tdp_w)
    cpu = CpuInfo.read(procfs)
    named = look_up(cpu.key)
    told = instance_type or amazon_type(sysfs)
    source = "configured" if instance_type else "from DMI"
    attempts: tuple[Callable[[], Rating | None], ...] = (
        lambda: _instance(instance_type, source) if instance_type else None,
        lambda: _named(cpu, named),
        lambda: _instance(told, source) if cpu.virtual or not cpu.name else None,
        lambda: _generation(cpu),
    )
    for attempt in attempts:
        if rating := attempt():
            return rating
    unknown = f"processor {cpu.name!r} is not known" if cpu.name else "no processor is named"
    if cpu.maker.startswith("0x") and cpu.model in _UNRATED:
        unknown = f"nobody states that of a server with {_UNRATED[cpu.model]} cores"
    if instance_type:
        unknown = f"instance type {printable(instance_type)[:40]!r} and {unknown}"
    return replace(UNKNOWN, basis=f"{UNKNOWN.basis}: {unknown}")


def _named(cpu: CpuInfo, sheet: tuple[float, int] | None) -> Rating | None:
    if sheet is None:
        return None
    watts, threads = sheet
    # Half of the threads may be switched off (SMT) on a physical machine, never more.
    if not cpu.virtual and 2 * cpu.cpus >= threads:
        packages = min(PACKAGES_MAX, _packages(cpu, threads))
        times = f"{packages} x " if packages > 1 else ""
        return Rating(
            f"TDP {packages * watts:g} W: {times}{cpu.name}, data sheet", tdp_w=packages * watts
        )
    if not threads:
        return None
    return Rating(
        f"TDP {watts / threads:.2f} W per CPU: share of {threads} threads of {cpu.name}, "
        f"{watts:g} W, data sheet",
        w_per_cpu=watts / threads,
    )


def _packages(cpu: CpuInfo, threads: int) -> int:
    if cpu.packages:
        return cpu.packages
    return max(1, round(cpu.cpus / (cpu.siblings or threads or cpu.cpus or 1)))


def _instance(name: str, source: str) -> Rating | None:
    if (known := generation_of_instance(name)) is None:
        return None
    kind, cores = known
    watts = kind.w_per_thread * (kind.smt if cores else 1)
    return Rating(
        f"TDP {watts:.2f} W per CPU: instance type {printable(name)[:40]}, {source}; "
        f"typical of {kind.name}",
        w_per_cpu=watts,
    )


def _generation(cpu: CpuInfo) -> Rating | None:
    if (kind := generation_of_cpu(cpu)) is None:
        return None
    return Rating(
        f"TDP {kind.w_per_thread:.2f} W per CPU: typical of {kind.name}, as told by "
        f"{cpu.name or 'its part number'}",
        w_per_cpu=kind.w_per_thread,
    )


def generation_of_cpu(cpu: CpuInfo) -> Generation | None:
    """Of a server processor whose model nobody says."""
    name = cpu.name.lower()
    for fragment, kind in _NAMED:
        if fragment in name:
            return kind
    if cpu.maker == "GenuineIntel" and cpu.family == 6:
        if cpu.model == 85 and cpu.stepping >= _CASCADE_LAKE_STEPPING:
            return CASCADE_LAKE
        return _INTEL.get(cpu.model)
    if cpu.maker == "AuthenticAMD" and "ryzen" not in name:
        for family, first, last, kind in _AMD:
            if cpu.family == family and first <= cpu.model <= last:
                return kind
    if cpu.maker.startswith("0x"):
        return _ARM.get(cpu.model)
    return None


def generation_of_instance(name: str) -> tuple[Generation, bool] | None:
    """(generation, whether a vCPU is a core) of "m5.xlarge", "n2-standard-8", "Standard_D4s_v5"."""
    name = name.strip().lower()[:64]
    if azure := _AZURE.fullmatch(name):
        return _azure(azure[1], azure[2], int(azure[3][:3]) if azure[3] else 1)
    family, dot, _ = name.partition(".")
    families = _FAMILIES[:_AMAZON_FAMILIES] if dot else _FAMILIES[_AMAZON_FAMILIES:]
    if not dot:
        family = name.partition("-")[0]
    for pattern, kind, cores in families:
        if re.fullmatch(pattern, family):
            return kind, cores
    return None


def _azure(series: str, letters: str, version: int) -> tuple[Generation, bool] | None:
    if series not in ("a", "b", "d", "ds", "e", "f", "fx", "l"):
        return None
    if "p" in letters:
        return (ALTRA, _CORE) if version <= 5 else None
    by_version = (
        {4: ROME, 5: MILAN, 6: GENOA, 7: TURIN}
        if "a" in letters
        else {3: SKYLAKE, 4: CASCADE_LAKE, 5: ICE_LAKE, 6: EMERALD_RAPIDS, 7: GRANITE_RAPIDS}
    )
    if version < 3:
        return (SKYLAKE if series == "f" else BROADWELL), _THREAD
    kind = by_version.get(version)
    return (kind, _THREAD) if kind else None


def amazon_type(sysfs: Path) -> str:
    """The instance type that Amazon writes into DMI; "" elsewhere."""
    dmi = sysfs / "class/dmi/id"
    try:
        with (dmi / "sys_vendor").open("rb") as file:
            vendor = file.read(LINE_MAX).strip()
        with (dmi / "product_name").open("rb") as file:
            product = file.read(LINE_MAX).strip()
    except OSError:
        return ""
    return product.decode("ascii", "replace")[:64] if vendor == b"Amazon EC2" else ""


def look_up(key: str) -> tuple[float, int] | None:
    """(TDP of one package, W, its threads or 0) of a name in the table."""
    if not key or not key.isascii() or "," in key or "\n" in key:
        return None
    try:
        table = TABLE.read_bytes()
    except OSError:
        return None
    _, found, rest = table.partition(b"\n" + key.encode() + b",")
    if not found:
        return None
    watts, _, threads = rest.partition(b"\n")[0].partition(b",")
    return float(watts), int(threads or 0)
