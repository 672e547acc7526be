"""What a case is, what it found, and what makes that right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

STALE_MAX_S = 0.2  # what was played with older files, or read later, is played again
TORN_MAX_S = 0.0015  # no longer than a reader tries


class Late(Exception):
    """The machine was too busy to feed or read a tree in time: play it again."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a case looks at. `within` is how far from right a number may be."""

    what: str
    right: float | str
    got: float | str
    unit: str = "J"
    within: float = 0.0

    @property
    def holds(self) -> bool:
        if isinstance(self.right, str) or isinstance(self.got, str):
            return self.right == self.got
        return abs(self.got - self.right) <= self.within  # never true of nan

    def said(self, value: float | str, tolerance: bool = False) -> str:
        text = value if isinstance(value, str) else f"{_number(value)} {self.unit}".rstrip()
        if tolerance and self.within and not isinstance(value, str):
            text += f" ±{self.within:.2g}"
        return f"{self.what}: {text}" if self.what else text


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a case is played.

    Args:
        folder: new, its own.
        age_s: files are rewritten at times of their own, up to so long apart.
        patient: whether to raise Late; at the last attempt tolerances grow instead.
        tears: whether files are torn now and then. Only at the first attempt: where that takes
            longer than a reader tries, the machine is too busy for it.
    """

    folder: Path
    age_s: float = 0.0
    patient: bool = True
    tears: bool = True

    def judge(self, stale_s: float, late_s: float, torn_s: float) -> None:
        """Raises: Late."""
        if not self.patient:
            return
        if stale_s - self.age_s > STALE_MAX_S:
            raise Late(f"files were up to {stale_s:.2f} s old")
        if late_s > STALE_MAX_S:
            raise Late(f"the agent read them up to {late_s:.2f} s late")
        if torn_s > TORN_MAX_S:
            raise Late(f"a file was torn for {torn_s * 1000:.1f} ms")

    def room(self, name: str) -> "Stage":
        """A place of its own within this one."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        return replace(self, folder=folder)


@dataclass(frozen=True, slots=True)
class Case:
    """One golden case. `about_s` is how long it takes, roughly: long ones begin first."""

    number: int
    name: str
    play: Callable[[Stage], Sequence[Part]]
    about_s: float = 10.0

    def __str__(self) -> str:
        return f"{self.number} {self.name}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A case, played."""

    case: Case
    parts: Sequence[Part] = ()
    failure: str = ""  # it could not be played to its end

    @property
    def holds(self) -> bool:
        return bool(self.parts) and not self.failure and all(part.holds for part in self.parts)

    @property
    def right(self) -> str:
        return "; ".join(part.said(part.right, tolerance=True) for part in self.parts)

    @property
    def got(self) -> str:
        return self.failure or "; ".join(part.said(part.got) for part in self.parts)

    @property
    def verdict(self) -> str:
        return "right" if self.holds else "wrong"
