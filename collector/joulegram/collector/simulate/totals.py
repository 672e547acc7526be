"""What a run made, counted: frames, rows, and joules per component and team."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from joulegram.collector.simulate.cluster import TEAMS
from joulegram.collector.simulate.frames import NOBODY, Made

COMPONENTS = ("cpu", "dram", "gpu", "other")
TEAM_NAMES = (*TEAMS, NOBODY)


@dataclass(slots=True)
class Totals:
    """Sums of frames that are durable. Python's integers: a site's month leaves int64."""

    frames: int = 0
    rows: int = 0
    refused: int = 0
    component_uj: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COMPONENTS, 0))
    team_uj: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TEAM_NAMES, 0))

    @property
    def energy_uj(self) -> int:
        return sum(self.component_uj.values())

    def add(self, made: Made) -> None:
        """Count a frame that is durable."""
        self.frames += 1
        self.rows += made.rows
        for component, uj in zip(COMPONENTS, made.component_uj, strict=True):
            self.component_uj[component] += uj
        for team, uj in zip(TEAM_NAMES, made.team_uj.tolist(), strict=True):
            self.team_uj[team] += uj

    def as_json(self) -> Mapping[str, Any]:
        """For --json; energy in uJ."""
        return {
            "frames": self.frames,
            "rows": self.rows,
            "refused": self.refused,
            "energy_uj": self.energy_uj,
            "by_component": self.component_uj,
            "by_team": self.team_uj,
        }
