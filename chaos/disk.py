"""A small disk of a part's own, that can be full or read-only; a page of random bytes."""

import contextlib
import errno
import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = 4096  # of the agent's spool


def disks_can_be_had(folder: Path) -> bool:
    """Whether we may mount here: as root, and where the kernel lets us."""
    probe = folder / "probe"
    probe.mkdir()
    try:
        disk = Disk(probe, 1)
        disk.mount()
        disk.unmount()
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        probe.rmdir()
    return True


@dataclass(frozen=True, slots=True)
class Disk:
    """A tmpfs of `megabytes` at `path`."""

    path: Path
    megabytes: int

    def mount(self) -> None:
        """Raises: OSError, CalledProcessError where we may not."""
        self.path.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0:
            raise PermissionError("only root mounts disks")
        _run("mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m", "chaos", str(self.path))

    def unmount(self) -> None:
        # Lazily: a part that would not end must not keep the folder.
        _run("umount", "-l", str(self.path))

    def fill(self) -> None:
        """Leave not a byte."""
        with self._filler.open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(1 << 20))
            except OSError as full:
                if full.errno != errno.ENOSPC:
                    raise
            with contextlib.suppress(OSError):  # what is left of the last megabyte
                while True:
                    filler.write(bytes(PAGE_BYTES))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def read_only(self, on: bool) -> None:
        """Raises: CalledProcessError while a file is open for writing."""
        _run("mount", "-o", f"remount,{'ro' if on else 'rw'}", str(self.path))

    @property
    def _filler(self) -> Path:
        return self.path / "filler"


def corrupt_page(database: Path, rng: random.Random) -> int:
    """Random bytes over one page of a database that nobody has open. Returns which, from 1 on."""
    pages = database.stat().st_size // PAGE_BYTES
    number = rng.randrange(1, pages + 1)
    with database.open("r+b") as file:
        file.seek((number - 1) * PAGE_BYTES)
        file.write(rng.randbytes(PAGE_BYTES))
        file.flush()
        os.fsync(file.fileno())
    return number


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
