"""What a pipeline stage promises: `send` returns when the batch is safe downstream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from joulegram.collector.checked import Checked


class Busy(Exception):
    """Nothing was kept. Offer the same batch again later."""


class Poison(Exception):
    """This batch can never succeed. Park it and go on."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One frame of a batch that will never be stored; the others were."""

    frame: Checked
    reason: str
    detail: str


class Stage(Protocol):
    async def send(self, frames: Sequence[Checked]) -> Sequence[Refused]:
        """Return once the frames, but for the refused, are safe downstream; else raise Busy."""
