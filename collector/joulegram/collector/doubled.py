"""Whether two agents report under one node's name: two epochs alive at once.

A restart ends one epoch before the next begins, so the two share a window or none; two agents share
every window. A spool belongs to one agent, so this is a name given twice (a template, a cloned
machine), and energy of two machines adds up under it.
"""

WINDOWS = 5  # of the newest ones
SHARED = 3  # so many of them must hold frames of more than one epoch
EPOCHS = 4  # of a window; more of them tell nothing new


class Epochs:
    """Which epochs a node's newest windows came from."""

    __slots__ = ("_of_window",)

    def __init__(self) -> None:
        self._of_window: dict[int, tuple[int, ...]] = {}

    def seen(self, window_start_ms: int, epoch: int) -> None:
        """A frame of `epoch` is durable; frames may come in any order, and again."""
        epochs = self._of_window.get(window_start_ms, ())
        if epoch in epochs or len(epochs) == EPOCHS:
            return
        self._of_window[window_start_ms] = (*epochs, epoch)
        if len(self._of_window) > WINDOWS:
            del self._of_window[min(self._of_window)]

    @property
    def doubled(self) -> bool:
        """Whether more than one agent is alive under the name."""
        return sum(len(epochs) > 1 for epochs in self._of_window.values()) >= SHARED
