"""The container image, built from the working tree by buildah, and run: no container engine is needed.

Its base stands in for the official Python image; it is made by debootstrap once and kept in buildah's storage.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import wire
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess

ROOT = Path(__file__).parent.parent
BASE = "localhost/python:3-slim"
BASE_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

ENVIRONMENT = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
"""The variable lets buildah do without a container runtime."""


@pytest.mark.container
@pytest.mark.timeout(600)  # the first time on a machine, the base image is made
def test_the_image_serves_and_drains_and_its_volume_keeps_the_events(container: Container) -> None:
    config = container.config
    server = container.server

    assert container.uid != 0
    assert list(config["Volumes"]) == ["/data"]
    assert sorted(config["ExposedPorts"]) == ["8080/tcp", "8081/tcp"]
    for command in (config["Entrypoint"], config["Cmd"]):
        assert command[0] != "/bin/sh", "a shell would keep SIGTERM to itself"
    assert not list(container.root.glob("opt/venv/**/site-packages/pip"))
    assert container.health_check() == 1, "nobody listens yet"

    server.start()
    assert container.health_check() == 0
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert re.search(rf"^Uid:(\s+{container.uid}){{4}}$", status, re.MULTILINE)
    if HUGE_PAGES.exists() and "[madvise]" in HUGE_PAGES.read_text():
        heap = Path(f"/proc/{server.pid}/smaps").read_text().partition("[heap]")[2]
        assert "hg" in heap.partition("VmFlags:")[2].partition("\n")[0].split(), "its memory is in small pages"
    acked = wire.exchange(server.port, b"".join(wire.events("acked", 100)))
    assert [reply["status"] for reply in acked] == ["stored"] * 100

    with wire.Peer(server.silent_port) as silent:
        silent.send(b"".join(wire.events("early", 1000)))
        wait_until(lambda: server.ask("STATS")["received"] == 1100)
        server.signal(signal.Signals[config["StopSignal"]])
        assert silent.raw_rest() == b""  # the server's half of the close; the server goes on reading
        silent.send(b"".join(wire.events("late", 1000)))
    assert server.wait() == 0
    assert server.db.exists(), "the volume is not what it wrote to"
    assert container.health_check() == 1

    server.start()
    assert len(server.stored("t")) == 2100
    again = wire.exchange(server.port, b"".join(wire.events("acked", 100)))
    assert [reply["seq"] for reply in again] == [reply["seq"] for reply in acked]
    assert server.stop() == 0
    assert container.files_of_its_user() == [container.root / "data"], "it writes nowhere but to its volume"


def test_the_compose_file_is_valid_and_publishes_to_this_machine_only() -> None:
    file = ROOT / "docker-compose.yml"
    ports = re.findall(r'^ +- "([0-9.:]+)"', file.read_text(), re.MULTILINE)
    assert ports == ["127.0.0.1:8080:8080", "127.0.0.1:8081:8081"]

    for compose in (["docker", "compose"], ["docker-compose"]):  # the plugin, and Debian's package
        if shutil.which(compose[0]) and subprocess.run([*compose, "version"], capture_output=True).returncode == 0:
            _run(*compose, "--file", file, "config", "--quiet")
            return
    pytest.skip("neither docker compose nor docker-compose is installed")


class Container:
    """A container made by buildah, and a server in it with a folder as its volume."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.root = Path(_run("buildah", "mount", name))
        self.config = json.loads(_run("buildah", "inspect", name))["Docker"]["config"]
        _run("buildah", "config", "--volume", "/data-", name)  # otherwise buildah mounts its own folder over ours
        self.uid, gid = map(int, self.config["User"].split(":"))
        data = folder / "data"
        data.mkdir()
        os.chown(data, self.uid, gid)
        self.server = ServerInContainer(folder, name, [*self.config["Entrypoint"], *self.config["Cmd"]])

    def health_check(self) -> int:
        """Run the health check as Docker does; return the exit code."""
        kind, *command = self.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        data = f"--volume={self.server.db.parent}:/data"
        nowhere_else = "--env=AGGREGATOR_PORT=1"
        return subprocess.run(
            ["buildah", "run", data, nowhere_else, self.name, "--", *command], env=ENVIRONMENT
        ).returncode

    def files_of_its_user(self) -> list[Path]:
        """The files of its user in the container's own file system, outside of volumes."""
        return [Path(line) for line in _run("find", self.root, "-uid", str(self.uid)).splitlines()]


class ServerInContainer(ServerProcess):
    """The server as its image starts it, but on free ports, because it shares the machine's network."""

    def __init__(self, folder: Path, container: str, command: list[str]) -> None:
        super().__init__(folder)
        self._container = container
        self._command = command

    def start(self, port: int = 0, silent_port: int = 0) -> ServerInContainer:
        seen = len(self.log)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "buildah", "run", f"--volume={self.db.parent}:/data", f"--env=AGGREGATOR_PORT={port}",
                    f"--env=AGGREGATOR_SILENT_PORT={silent_port}", self._container, "--", *self._command,
                ],
                env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        ready = re.compile(r"ready: acked port 0\.0\.0\.0:(\d+), silent port 0\.0\.0\.0:(\d+), .* in /data/")
        wait_until(lambda: ready.search(self.log, seen) or self.process.poll() is not None, timeout_s=30)
        match = ready.search(self.log, seen)
        assert match, f"the server ended with {self.process.returncode}: {self.log[seen:]}"
        self.port, self.silent_port = int(match[1]), int(match[2])
        return self

    @property
    def pid(self) -> int:
        """The pid of the server, below the processes that buildah keeps around it."""
        return _with_descendants(self.process.pid)[-1]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        if hasattr(self, "process") and self.process.poll() is None:
            for pid in reversed(_with_descendants(self.process.pid)):
                os.kill(pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def container(image: str, tmp_path: Path) -> Iterator[Container]:
    name = _run("buildah", "from", "--ulimit", "nofile=4096", image)  # buildah's default, 1024, differs from Docker's
    try:
        container = Container(name, tmp_path)
        yield container
        container.server.end()
    finally:
        _run("buildah", "rm", name)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    """The name of an image of the working tree."""
    if os.geteuid() != 0:
        pytest.skip("only root can build images without a container engine")
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if BASE not in _run("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        _make_base()
    name = f"localhost/aggregator-test-{os.getpid()}"
    _run(  # --format docker, because OCI's own format has no health check
        "buildah", "build", "--format", "docker", "--no-cache", "--force-rm", "--network", "host",
        *_mounts_for_pip(tmp_path), "--build-arg", f"BASE={BASE}", "--tag", name, ROOT,
    )  # fmt: skip
    yield name
    _run("buildah", "rmi", name)


def _make_base() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _run("debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", folder)
        (Path(folder) / "usr/bin/python").symlink_to("python3")
        container = _run("buildah", "from", "scratch")
        try:
            _run("buildah", "add", "--quiet", container, folder, "/")
            _run("buildah", "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
            _run("buildah", "commit", "--quiet", container, BASE)
        finally:
            _run("buildah", "rm", container)


def _mounts_for_pip(folder: Path) -> list[str]:
    """Options that let a pip in the build use the same package indexes as this machine's pip."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment wins
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = " ".join(ast.literal_eval(value).split())
    certificates = os.environ.get("REQUESTS_CA_BUNDLE") or ssl.get_default_verify_paths().cafile
    if certificates:
        settings.setdefault("cert", certificates)
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))

    mounts = [f"{config}:/etc/pip.conf:ro"]
    for word in {word for value in settings.values() for word in value.split()}:
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            path = path.parent if path.name == "simple" else path  # an index; its files are next to it
            mounts.append(f"{path}:{path}:ro")
    return [f"--volume={mount}" for mount in mounts]


def _with_descendants(pid: int) -> list[int]:
    """A process and all its descendants, parents first."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for thread in threads for child in thread.read_text().split()]
    return [pid, *(descendant for child in children for descendant in _with_descendants(child))]


def _run(*command: str | Path) -> str:
    """Run a program; return its standard output. If it fails, the test shows all its output."""
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()
