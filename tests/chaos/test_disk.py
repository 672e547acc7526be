"""A disk that is full, read-only, or has a bad page."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.disk import PAGE_BYTES, Disk, corrupt_page, disks_can_be_had


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if not disks_can_be_had(tmp_path):
        pytest.skip("only root mounts disks, and only where the kernel lets it")
    made = Disk(tmp_path / "disk", 1)
    made.mount()
    try:
        yield made
    finally:
        made.unmount()


def test_full_and_free_again(disk: Disk) -> None:
    disk.fill()
    assert shutil.disk_usage(disk.path).free == 0
    with pytest.raises(OSError, match="No space left"):
        (disk.path / "more").write_bytes(b"x")
    disk.free()
    (disk.path / "more").write_bytes(b"x")


def test_read_only_and_writable_again(disk: Disk) -> None:
    disk.read_only(True)
    with pytest.raises(OSError, match="Read-only"):
        (disk.path / "more").write_bytes(b"x")
    disk.read_only(False)
    (disk.path / "more").write_bytes(b"x")


def test_one_page_changes_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "file"
    before = bytes(8 * PAGE_BYTES)
    file.write_bytes(before)
    number = corrupt_page(file, random.Random(1))
    after = file.read_bytes()
    pages = [after[at : at + PAGE_BYTES] for at in range(0, len(after), PAGE_BYTES)]
    assert [n for n, page in enumerate(pages, 1) if any(page)] == [number]
