"""Disks that a test may fill, break and pull the plug of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def _run(*command: str) -> str | None:
    """Run a program; what it complains of, or None."""
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return (done.stderr.strip() or f"{command[0]} exited with {done.returncode}") if done.returncode else None


class _Mounted:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _mount(self, *options: str) -> str | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        return _run("mount", *options, str(self.folder))

    def remount(self, options: str) -> None:
        error = _run("mount", "-o", f"remount,{options}", str(self.folder))
        assert error is None, error

    def unmount(self) -> None:
        # Lazy: a server that a failed test left behind is ended by its own fixture, maybe after this.
        if self.folder.is_mount():
            error = _run("umount", "--lazy", str(self.folder))
            assert error is None, error


class SmallDisk(_Mounted):
    """A tmpfs of a few MiB."""

    def make(self, size: str = "3m") -> str | None:
        return self._mount("-t", "tmpfs", "-o", f"size={size}", "aggregator-test")

    def remove(self) -> None:
        self.unmount()


class Ext4Image(_Mounted):
    """A file with an ext4 file system, mounted through a loop device.

    The file holds what has reached the "disk"; what was written and not synced is in the page cache only. So a copy of
    the file is what a power cut would leave. What it cannot show are sectors torn or reordered within one flush, or a
    drive that lies about flushing.
    """

    def __init__(self, image: Path, folder: Path) -> None:
        super().__init__(folder)
        self.image = image

    def make(self, size: int = 512 << 20) -> str | None:
        with self.image.open("wb") as file:
            file.truncate(size)  # a sparse file: takes what is written
        return _run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", str(self.image)) or self.mount()

    def mount(self) -> str | None:
        # Nothing is written back just because time has passed: it has to be synced.
        return self._mount("-o", "loop,commit=300", str(self.image))

    def copy(self, name: str) -> Ext4Image:
        """What is on the "disk" at this moment, as another disk, not mounted yet."""
        copied = Ext4Image(self.image.with_name(f"{name}.img"), self.folder.with_name(name))
        error = _run("cp", "--sparse=always", str(self.image), str(copied.image))
        assert error is None, error
        return copied

    def remove(self) -> None:
        self.unmount()
        self.image.unlink(missing_ok=True)
