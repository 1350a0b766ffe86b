"""Disks that a test can fill, break and cut the power of."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def _run(*command: str) -> str | None:
    """Run a program; return its error message, or None."""
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
        # Lazy, because a server left running by a failed test may still use it; that server's fixture may end it later.
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

    The file holds what has reached the "disk"; bytes that were written and not synced are only in the page cache. So a
    copy of the file is what a power cut would leave. It cannot show sectors that are torn or reordered within one
    flush, nor a drive that falsely reports a flush as done.
    """

    def __init__(self, image: Path, folder: Path) -> None:
        super().__init__(folder)
        self.image = image

    def make(self) -> str | None:
        return self.format() or self.mount()

    def format(self) -> str | None:
        with self.image.open("wb") as file:
            file.truncate(512 << 20)  # a sparse file: it takes only the space of what is written
        return _run("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard", str(self.image))

    def mount(self) -> str | None:
        # With commit=300 nothing is written back merely because time has passed: only a sync writes it.
        return self._mount("-o", "loop,commit=300", str(self.image))

    def copy(self, name: str) -> Ext4Image:
        """Copy what is on the "disk" at this moment to another disk, which is not mounted yet."""
        copied = Ext4Image(self.image.with_name(f"{name}.img"), self.folder.with_name(name))
        error = _run("cp", "--sparse=always", str(self.image), str(copied.image))
        assert error is None, error
        return copied

    def remove(self) -> None:
        self.unmount()
        self.image.unlink(missing_ok=True)


class FailingDisk(Ext4Image):
    """An ext4 image that can be told to take no more: then writes to new places fail as on a broken drive.

    The image is a sparse file on a tmpfs whose growth can be stopped. The kernel then sees a write error of the device,
    reports it to the process that syncs, and marks the pages as clean.
    """

    def __init__(self, folder: Path) -> None:
        self._pool = SmallDisk(folder / "pool")
        super().__init__(self._pool.folder / "disk.img", folder / "disk")

    def make(self) -> str | None:
        error = self._pool.make("64m") or self.format() or self._back_journal() or self.mount()
        if error is None:
            self._split_requests()
        return error

    def _back_journal(self) -> str | None:
        """Allocate the journal in the sparse file: a file system that stops altogether is another fault."""
        done = subprocess.run(
            ["debugfs", "-R", "blocks <8>", str(self.image)], capture_output=True, text=True, timeout=60
        )
        if not done.stdout.split():
            return done.stderr.strip() or "debugfs finds no journal"
        with self.image.open("r+b") as file:
            for block in map(int, done.stdout.split()):
                file.seek(block * 4096)
                content = file.read(4096)
                file.seek(block * 4096)
                file.write(content)
        return None

    def _split_requests(self) -> None:
        """Write one page at a time, because a loop device reports success for a request that it wrote only in part."""
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        (device,) = [name for name, folder, *_ in mounts if folder == str(self.folder)]
        Path("/sys/block", Path(device).name, "queue/max_sectors_kb").write_text("4")

    def break_down(self) -> None:
        """Keep what has been written so far, and take nothing new."""
        error = _run("sync", "--file-system", str(self.folder))
        assert error is None, error
        now = os.statvfs(self._pool.folder)
        self._pool.remount(f"size={(now.f_blocks - now.f_bfree) * now.f_frsize}")

    def heal(self) -> None:
        self._pool.remount("size=64m")

    def remove(self) -> None:
        super().remove()
        self._pool.remove()
