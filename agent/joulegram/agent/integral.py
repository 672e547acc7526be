"""From samples of power to the energy of each window, where a device has no energy counter."""

from dataclasses import dataclass, field

from joulegram.agent.counters import GAP_SLACK_S, NS_PER_S, Interval
from joulegram.agent.sensors.sensor import Sample


@dataclass(slots=True)
class Integral:
    """One power meter's history: turns its samples into intervals.

    Between two samples the trapezoid; where a sample is itself the mean over the time just
    before it, that mean for so long, and the trapezoid for the rest. Time in which a reading
    failed, or none was tried, is a gap: power is never bridged. Between two samples of one
    count of energy it is their difference, which bridges what failed or was not looked at.

    Args:
        averaged_s: each sample is the mean over so long before it; 0: power at one moment.
        tick_s: how often it is meant to be read.
    """

    averaged_s: float
    tick_s: float
    last_ns: int | None = None  # of the newest sample
    _before: Sample | None = field(default=None, init=False)
    _failed: bool = field(default=False, init=False)  # since `_before`
    _tried_ns: int = field(default=0, init=False)
    _rest: int = field(default=0, init=False)  # below a microjoule, carried on; in uW ns / 2

    def failed(self) -> None:
        """Note a reading that did not come: nothing is known until two good ones."""
        self._failed = True

    def take(self, now_ns: int, sample: Sample) -> Interval | None:
        """Take a good reading, made at `now_ns`; the same sample again says nothing new.

        Returns: the interval since the sample before, or None where there is none.
        """
        slack_ns = round((self.tick_s + GAP_SLACK_S) * NS_PER_S)
        if now_ns - self._tried_ns > slack_ns:
            self._failed = True  # nobody looked for a while
        self._tried_ns = now_ns
        before = self._before
        if before is not None and sample.at_ns <= before.at_ns:
            return None
        failed, self._failed = self._failed, False
        self.last_ns, self._before = sample.at_ns, sample
        if before is None:
            return None
        if sample.since_ns is not None:
            if sample.since_ns != before.since_ns:
                return None  # another count: what was drawn before it began is not known
            energy_uj = sample.grown_uj - before.grown_uj
            return Interval(before.at_ns, sample.at_ns, energy_uj, bridged=failed)
        if failed:
            return None
        elapsed_ns = sample.at_ns - before.at_ns
        mean_ns = min(elapsed_ns, round(self.averaged_s * NS_PER_S))
        twice = 2 * sample.power_uw * mean_ns
        twice += (before.power_uw + sample.power_uw) * (elapsed_ns - mean_ns)
        energy_uj, self._rest = divmod(twice + self._rest, 2 * NS_PER_S)
        return Interval(before.at_ns, sample.at_ns, energy_uj, bridged=False)
