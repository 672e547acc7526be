"""The names that schedulers, container runtimes and CUDA give an NVIDIA GPU or a part of it."""

from collections.abc import Sequence
from typing import Any

from joulegram.agent.sensors.nvidia.mig import Instance
from joulegram.agent.sensors.nvidia.nvml import Board


def names_of(board: Board, parts: Sequence[Instance]) -> dict[str, float]:
    """{name: fraction of the GPU}. Raises: Gone."""
    names = {board.uuid: 1.0, str(_index(board)): 1.0}
    minor = board.told("nvmlDeviceGetMinorNumber")
    if minor is not None:
        names[f"/dev/nvidia{minor}"] = names[f"nvidia{minor}"] = 1.0
    pci = board.told("nvmlDeviceGetPciInfo_v3")
    if pci is not None:
        names |= dict.fromkeys(_pci_names(pci), 1.0)
    fractions = {part.uuid: part.fraction for part in parts}
    others = others_of(board, parts)
    return names | fractions | {other: fractions[uuid] for other, uuid in others.items()}


def others_of(board: Board, parts: Sequence[Instance]) -> dict[str, str]:
    """{name: UUID} of what MIG devices are called beside their UUID. Raises: Gone."""
    index = _index(board)
    others = {f"{index}:{part.index}": part.uuid for part in parts}  # NVIDIA_VISIBLE_DEVICES
    old = {f"MIG-{board.uuid}/{part.gi}/{part.ci}": part.uuid for part in parts}  # before R470
    return others | old


def _index(board: Board) -> int:
    index = board.told("nvmlDeviceGetIndex")
    return board.order if index is None else int(index)


def _pci_names(pci: Any) -> set[str]:
    """3b:00.0, 0000:3b:00.0, 00000000:3b:00.0, and each in capitals."""
    place = f"{pci.bus & 0xFF:02x}:{pci.device & 0xFF:02x}.0"
    lower = {place, f"{pci.domain:04x}:{place}", f"{pci.domain:08x}:{place}"}
    return lower | {name.upper() for name in lower}
