"""Errors of the simulator."""

from joulegram.collector.errors import CollectorError


class NotSent(CollectorError):
    """The collector did not take the frames; the message says why and what to do."""
