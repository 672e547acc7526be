"""The names that schedulers, container runtimes and CUDA give an NVIDIA GPU or a part of it."""

from collections.abc import Sequence
from typing import Any

from joulegram.agent.sensors.nvidia.mig import Instance
from joulegram.agent.sensors.nvidia.nvml import Board


def names_of(board: Board, parts: Sequence[Instance]) -> dict[str, float]:
    """{name: fraction of the GPU}. Raises: Gone."""
    index = board.told("nvmlDeviceGetIndex")
    index = board.order if index is None else index
    names = {board.uuid: 1.0, str(index): 1.0}
    minor = board.told("nvmlDeviceGetMinorNumber")
    if minor is not None:
        names[f"/dev/nvidia{minor}"] = names[f"nvidia{minor}"] = 1.0
    pci = board.told("nvmlDeviceGetPciInfo_v3")
    if pci is not None:
        names |= dict.fromkeys(_pci_names(pci), 1.0)
    for part in parts:
        names[part.uuid] = part.fraction
        names[f"MIG-{board.uuid}/{part.gi}/{part.ci}"] = part.fraction  # drivers before R470
        names[f"{index}:{part.index}"] = part.fraction  # NVIDIA_VISIBLE_DEVICES
    return names


def _pci_names(pci: Any) -> set[str]:
    """3b:00.0, 0000:3b:00.0, 00000000:3b:00.0, and each in capitals."""
    place = f"{pci.bus & 0xFF:02x}:{pci.device & 0xFF:02x}.0"
    lower = {place, f"{pci.domain:04x}:{place}", f"{pci.domain:08x}:{place}"}
    return lower | {name.upper() for name in lower}
