"""What this machine offers to meter: every kind of sensor, listed in one place, best first.

Per component (cpu, dram, platform) the first kind that may be read counts; the others are left
to `joulegram check`, which shows what they say beside it. GPUs are counted each for itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, cast

from joulegram.agent.clock import Clock
from joulegram.agent.config import AgentConfig
from joulegram.agent.energy import AnySensor
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors import cray, hwmon
from joulegram.agent.sensors.bmc import ipmi
from joulegram.agent.sensors.bmc.ipmi import Dcmi, ipmi_power
from joulegram.agent.sensors.drm import cards
from joulegram.agent.sensors.drm.clients import Clients
from joulegram.agent.sensors.load.model import LoadModel
from joulegram.agent.sensors.nvidia.gpus import NvidiaGpus
from joulegram.agent.sensors.powercap import RaplZone
from joulegram.agent.sensors.sensor import PowerSensor, Sensor
from joulegram.agent.textfile import Torn, as_line, read_whole

KERNELS_SYSFS = Path("/sys")


class Slow(PowerSensor, Protocol):
    """A meter that is asked in a thread of its own."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of sensor.

    Args:
        find: all of it that is there now; cheap, and asked again every few seconds.
        why_none: why there is none, and what to do about it.
    """

    name: str
    find: Callable[[], Sequence[AnySensor]]
    why_none: Callable[[], tuple[str, str]]


class Machine:
    """The sensors of one machine. Slow ones are made once and ask in threads of their own."""

    def __init__(self, config: AgentConfig, clock: Clock) -> None:
        sysfs = config.sysfs
        self._slow = dict(_slow(config, clock))
        self.model = LoadModel.find(sysfs, config.procfs, clock, config.tdp_w, config.instance_type)
        nvidia, clients = NvidiaGpus(clock), Clients(config.procfs, clock)
        self.kinds = [
            # The blade's node counter goes before RAPL's psys, RAPL before the blade's parts.
            Kind("Cray node", lambda: _blade(sysfs, clock, True), lambda: _no_cray(sysfs)),
            Kind("RAPL", lambda: RaplZone.find(sysfs), lambda: _no_rapl(sysfs)),
            Kind("Cray parts", lambda: _blade(sysfs, clock, False), _nothing),
            Kind("power meter", lambda: hwmon.find(sysfs, clock), lambda: _no_meter(sysfs)),
            *(Kind(name, partial(list, [slow]), _nothing) for name, slow in self._slow.items()),
            Kind("NVIDIA GPU", nvidia.find, lambda: (nvidia.why_none(), "")),
            Kind(
                "AMD or Intel GPU",
                lambda: cards.find(sysfs, config.procfs, clock, clients),
                lambda: (f"no card of theirs in {sysfs}/class/drm that is its own device", ""),
            ),
        ]

    def sensors(self) -> list[AnySensor]:
        """What is to be metered now, each device once."""
        return chosen([kind.find() for kind in self.kinds], self.model)

    def close(self) -> None:
        """End the threads of slow sensors."""
        for slow in self._slow.values():
            slow.close()


def denied(sensor: AnySensor) -> bool:
    """Whether only a permission keeps a sensor from being read."""
    try:
        read(sensor)
    except SensorDenied:
        return True
    except (SensorFailed, OSError, Torn):
        return False
    return False


def chosen(
    kinds: Iterable[Sequence[AnySensor]],
    model: AnySensor,
    denied: Callable[[AnySensor], bool] = denied,
) -> list[AnySensor]:
    """Each device once, by precedence.

    A kind whose every sensor of a component is for root only counts for nothing; one that fails
    otherwise is listed, and stays at coverage 0: a number that was lost is not replaced by one
    that was guessed. Only where no CPU counter may be read does the model stand in.

    Args:
        kinds: what was found of each kind, best first.
        denied: whether a sensor may not be read; `check` has asked already.
    """
    components: dict[str, list[list[AnySensor]]] = {}
    for kind in kinds:
        for component in dict.fromkeys(sensor.component for sensor in kind):
            of_kind = [sensor for sensor in kind if sensor.component == component]
            components.setdefault(component, []).append(of_kind)
    picked: list[AnySensor] = []
    for component, candidates in components.items():
        if component == "gpu":
            every = {s.device: s for of_kind in reversed(candidates) for s in of_kind}
            picked += [every[device] for device in sorted(every)]
            continue
        readable = (of_kind for of_kind in candidates if not all(map(denied, of_kind)))
        best = next(readable, [] if component == "cpu" else candidates[0])
        picked += best
    if not any(sensor.component == "cpu" for sensor in picked):
        picked.append(model)
    return picked


def read(sensor: AnySensor) -> int:
    """A counter's value in uJ, or a meter's power in uW.

    Raises: SensorDenied, SensorFailed, OSError, Torn.
    """
    if hasattr(sensor, "read_uj"):
        return cast(Sensor, sensor).read_uj()
    return sensor.sample().power_uw


def _blade(sysfs: Path, clock: Clock, whole: bool) -> list[AnySensor]:
    return [s for s in cray.find(sysfs, clock) if (s.device == "platform") == whole]


def _slow(config: AgentConfig, clock: Clock) -> Iterator[tuple[str, Slow]]:
    """Management controllers that are to be asked, best first."""
    if config.redfish_url:
        # Imported here: who asks no controller does not pay for its client.
        from joulegram.agent.sensors.bmc.redfish import redfish_power
        from joulegram.agent.sensors.bmc.redfish_client import Access

        access = Access(
            config.redfish_url,
            config.redfish_user,
            config.redfish_password_file,
            config.redfish_ca,
            config.redfish_insecure,
        )
        yield "Redfish", redfish_power(access, clock, config.redfish_chassis)
    # A captured tree has no controller, and must not ask this machine's own.
    dev = Path("/dev") if config.sysfs == KERNELS_SYSFS else None
    if config.ipmi == "on" or (config.ipmi == "auto" and ipmi.likely(config.sysfs, dev)):
        yield "IPMI", ipmi_power(Dcmi(clock, ipmi.programs()))


def _nothing() -> tuple[str, str]:
    return "", ""


def _no_rapl(sysfs: Path) -> tuple[str, str]:
    return (
        f"no zone in {sysfs}/class/powercap",
        "On a physical Intel or AMD machine: modprobe intel_rapl_msr. In a VM there is none.",
    )


def _no_cray(sysfs: Path) -> tuple[str, str]:
    return f"no {sysfs}/cray/pm_counters", "On HPE Cray EX blades it is there; nowhere else."


def _no_meter(sysfs: Path) -> tuple[str, str]:
    return (
        f"no power meter in {sysfs}/class/hwmon",
        "Where the BMC has one: modprobe acpi_power_meter. Else `ipmi` or `redfish_url`.",
    )


def boot_id(procfs: Path) -> str:
    """The kernel's random name of this boot; "" where a captured tree has none."""
    try:
        return read_whole(procfs / "sys/kernel/random/boot_id", as_line)
    except (OSError, Torn):
        return ""
