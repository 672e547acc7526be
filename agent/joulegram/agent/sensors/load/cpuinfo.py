"""Which processor this machine has, as far as it says.

Reads  <procfs>/cpuinfo
Format https://docs.kernel.org/filesystems/proc.html; x86 has "model name" and "physical id",
Arm "CPU implementer" and "CPU part".

The file grows with the machine (1.5 kB per CPU) and may hold anything: it is read up to a
bound, and what cannot be made out of it is left open.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from joulegram.agent.textfile import printable

READ_MAX = 8 << 20  # more than 4,096 CPUs on x86
NAME_MAX = 96

_FIELD = re.compile(rb"^([A-Za-z][A-Za-z _]{0,30}?)[ \t]*:[ \t]*([^\n]{0,8192})", re.M)
_CPU = re.compile(rb"^processor[ \t]*:[ \t]*\d", re.M)
_PACKAGE = re.compile(rb"^physical id[ \t]*:[ \t]*(\d{1,9})[ \t]*$", re.M)
_CLUTTER = re.compile(
    r"\((?:r|tm|c)\)|[®™]|@.*|\bwith radeon.*|\b\d+(?:st|nd|rd|th) gen\b|\b[\w.]+-cores?\b"
    r"|\b(?:cpu|processor|intel|amd|apu)\b"
)


@dataclass(frozen=True)
class CpuInfo:
    """What a cpuinfo says of the machine; "" and 0 where it does not say."""

    name: str = ""  # "Intel(R) Xeon(R) CPU E5-2620 v3 @ 2.40GHz"
    maker: str = ""  # "GenuineIntel", "AuthenticAMD", "0x41"
    family: int = 0
    model: int = 0  # Arm: the part
    stepping: int = 0
    cpus: int = 0  # logical
    packages: int = 0
    siblings: int = 0  # logical CPUs of one package
    virtual: bool = False

    @classmethod
    def read(cls, procfs: Path) -> "CpuInfo":
        """Never raises: what cannot be read says nothing."""
        try:
            raw = _read(procfs / "cpuinfo")
        except OSError:
            return cls()
        first = _first(raw)
        arm = b"CPU part" in first
        return cls(
            name=_text(first.get(b"model name", b"")),
            maker=_text(first.get(b"CPU implementer" if arm else b"vendor_id", b"")),
            family=_number(first.get(b"cpu family")),
            model=_number(first.get(b"CPU part" if arm else b"model")),
            stepping=_number(first.get(b"stepping")),
            cpus=len(_CPU.findall(raw)),
            packages=len(set(_PACKAGE.findall(raw))),
            siblings=_number(first.get(b"siblings")),
            virtual=b"hypervisor" in first.get(b"flags", b"").split(),
        )

    @cached_property
    def key(self) -> str:
        """The name as cpu_tdp.csv writes it: "xeon e5-2620 v3"."""
        return key_of(self.name)


def key_of(name: str) -> str:
    """A processor's name without what differs between two machines that have it."""
    return " ".join(_CLUTTER.sub(" ", name.lower()).replace("core2", "core 2").split())


def _read(path: Path) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        parts, left = [], READ_MAX
        while left and (part := os.read(file, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(file)


def _first(raw: bytes) -> Mapping[bytes, bytes]:
    """The first value of each field: the CPUs of a machine are alike, or nearly so."""
    first: dict[bytes, bytes] = {}
    for match in _FIELD.finditer(raw, 0, 1 << 16):
        first.setdefault(match[1], match[2].strip())
    return first


def _text(raw: bytes) -> str:
    """In characters that any terminal shows."""
    return printable(raw[:NAME_MAX].decode("ascii", "backslashreplace")).strip()[:NAME_MAX]


def _number(raw: bytes | None) -> int:
    try:
        return max(0, int(raw[:10], 0)) if raw else 0
    except ValueError:
        return 0
