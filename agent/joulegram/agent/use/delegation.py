"""Which cgroups may have been made, and named, by somebody who is not root.

Reads  who owns the folders below <cgroupfs>, in each hierarchy that is there
Format https://docs.kernel.org/admin-guide/cgroup-v2.html, "Delegation"

Who may write to a folder makes and names what lies in it: root gives one away by making it a
user's (Delegate=yes beside User= does). So the names down to the first folder that was given away
are root's words, its own name included, and those below are anybody's.
"""

import os
import stat
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

REMEMBERED = 4096
HIERARCHIES_MAX = 64


@dataclass(frozen=True, slots=True)
class Named:
    """What root named of a cgroup's path."""

    by_root: str  # the path, or its beginning: down to the first folder given away
    seen: bool  # no folder of it was gone; so too where its hierarchy cannot be seen at all


class Delegation:
    """Remembers what was given away, so that its removal makes nobody believe what lay in it."""

    def __init__(self, cgroupfs: Path) -> None:
        self._cgroupfs = str(cgroupfs)
        self._folders: dict[str, str | None] = {}
        self._given: OrderedDict[str, None] = OrderedDict()
        # A tree that was captured or made by a test is its maker's altogether.
        self._uids, self._gids, self._open = {0}, {0}, False
        try:
            root = os.lstat(self._cgroupfs)
        except OSError:
            return
        self._uids.add(root.st_uid)
        self._gids.add(root.st_gid)
        self._open = bool(root.st_mode & stat.S_IWOTH)

    def named(self, path: str, controllers: str = "") -> Named:
        """Of a path in the hierarchy of these controllers, as /proc/<pid>/cgroup has both."""
        root = self._folder(controllers)
        return self.below(root, path) if root is not None else Named(path, True)

    def below(self, root: str, path: str) -> Named:
        """The same in a hierarchy with this folder."""
        folder, seen = root, True
        for part in path.split("/"):
            if not part:
                continue
            folder = f"{folder}/{part}"
            # A folder that is gone ends nothing: what was given away above it is still there, for
            # who got it cannot remove it.
            given = self._look(folder)
            seen = seen and given is not None
            if given or (given is None and folder in self._given):
                return Named(folder[len(root) :], seen)
        return Named(path, seen)

    def gives(self, folder: str) -> bool:
        """Whether a cgroup's folder was given away."""
        return self._look(folder) or False

    def _look(self, folder: str) -> bool | None:
        """Whether it was given away; None where it is not there to be looked at."""
        try:
            status = os.lstat(folder)
        except (OSError, ValueError):
            return None
        own = (
            status.st_uid in self._uids
            and (status.st_gid in self._gids or not status.st_mode & stat.S_IWGRP)
            and (self._open or not status.st_mode & stat.S_IWOTH)
        )
        if own:
            self._given.pop(folder, None)
        else:
            self._given[folder] = None
            self._given.move_to_end(folder)
            if len(self._given) > REMEMBERED:
                self._given.popitem(last=False)
        return not own

    def _folder(self, controllers: str) -> str | None:
        if controllers not in self._folders:
            if len(self._folders) >= HIERARCHIES_MAX:
                return None
            self._folders[controllers] = self._find(controllers)
        return self._folders[controllers]

    def _find(self, controllers: str) -> str | None:
        """Where a hierarchy is mounted. Some systems mount it with its controllers turned round."""
        name = controllers.removeprefix("name=")
        if not name:
            unified = f"{self._cgroupfs}/unified"
            whole = os.path.exists(f"{self._cgroupfs}/cgroup.controllers")  # noqa: PTH110
            return self._cgroupfs if whole or not os.path.isdir(unified) else unified  # noqa: PTH112
        for one in (name, *name.split(",")):
            folder = f"{self._cgroupfs}/{one}"
            if "\0" not in one and "/" not in one and os.path.isdir(folder):  # noqa: PTH112
                return folder
        return None
