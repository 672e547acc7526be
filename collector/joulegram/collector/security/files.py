"""Files that hold secrets or decide about them: read whole, and only where nobody else meddles."""

import os
import stat
from pathlib import Path

from joulegram.collector.errors import BadSetting

MAX_BYTES = 16 * 2**20  # 100,000 tokens


def read_private(key: str, path: Path) -> bytes:
    """A file that only its owner and group may read. Raises BadSetting when others may."""
    content, mode = _read(key, path)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise BadSetting(
            f"security.{key} = {path}: every user of this machine may read it. chmod 0600 it (0640 "
            "for a group; in Kubernetes `defaultMode: 0440` of the volume)."
        )
    return content


def read_trusted(key: str, path: Path) -> bytes:
    """A file that only its owner and group may write. Raises BadSetting when others may."""
    content, mode = _read(key, path)
    if mode & stat.S_IWOTH:
        raise BadSetting(
            f"security.{key} = {path}: every user of this machine may change it, and so decide "
            "whom we trust. chmod o-w it."
        )
    return content


def _read(key: str, path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise BadSetting(
            f"security.{key} = {path}: {exc.strerror}. Name a file that this user may read."
        ) from exc
    if len(content) > MAX_BYTES:
        raise BadSetting(f"security.{key} = {path}: more than {MAX_BYTES} bytes; is it the one?")
    return content, mode
