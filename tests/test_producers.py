"""Real logging libraries and syslog daemons on the wrap port, set up as their own documentation says."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness import changes
from tests.harness.activation import listening
from tests.harness.background import in_background
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.shippers import rsyslog, syslog_ng
from tests.harness.wire import Json

pytestmark = pytest.mark.producer

FOLDER: Final = Path(__file__).parent / "producers"

ARRIVES_S: Final = 60.0
"""How long a client may take to send a few lines: node starts slowly on a busy machine."""

NODE: Final = {  # the framing of each
    "pino": "line feeds",
    "log4js": "__LOG4JS__",
    "bunyan": "line feeds",
    "winston": "line feeds",
    "winston-logstash": "line feeds",
    "winston3-logstash-transport": "JSON objects, one behind the other",
}
PYTHON: Final = {"SysLogHandler": None, "python-logstash-async": "logstash_async", "structlog": "structlog"}


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    return start_server("--wrap-port", "0")


@pytest.fixture
def server_by_program(start_server: StartServer) -> ServerProcess:
    return start_server("--wrap-port", "0", "--wrap-topic", "{program}")


def node(library: str, server: ServerProcess, count: int, delay_ms: int = 0) -> list[str]:
    """The command line of an npm library."""
    if not shutil.which("node"):
        pytest.skip("needs node")
    if not (FOLDER / "node_modules").exists():
        pytest.skip(f"{FOLDER / 'node_modules'} is not there: run {FOLDER / 'install'}")
    return ["node", str(FOLDER / "client.js"), library, f"{server.wrap_port}", f"{count}", f"{delay_ms}"]


def python(library: str, server: ServerProcess, count: int, delay_s: float = 0) -> list[str]:
    """The command line of a Python library."""
    module = PYTHON.get(library)
    if module and not importlib.util.find_spec(module):
        pytest.skip(f"needs {library}: pip install -e '.[producers]'")
    return [sys.executable, str(FOLDER / "client.py"), library, f"{server.wrap_port}", f"{count}", f"{delay_s}"]


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=ARRIVES_S)
    assert done.returncode == 0, done.stderr


def arrived(server: ServerProcess, count: int, topic: str = "app") -> list[Json]:
    """The events of a topic, once there are this many."""
    wait_until(lambda: len(server.listed(topic)) >= count, ARRIVES_S)
    found = server.listed(topic)
    assert len(found) == count
    return found


@pytest.mark.parametrize("library", NODE)
def test_a_library_of_node_with_its_defaults(library: str, server: ServerProcess) -> None:
    run(node(library, server, 20))

    for n, event in enumerate(arrived(server, 20)):
        payload = event["payload"]
        if library == "log4js":
            assert payload["data"] == ["hello", {"n": n}]
            assert payload["level"]["levelStr"] == "INFO"
        elif library == "winston3-logstash-transport":
            assert payload["message"] == '{"data":"hello"}'  # by default it drops everything else
        else:
            assert (payload.get("msg", payload.get("message")), payload["n"]) == ("hello", n)
        if host := payload.get("hostname", payload.get("serverName")):
            assert event["source"] == host
    wait_until(lambda: f"framing: {NODE[library]}" in server.log)


@pytest.mark.parametrize("library", PYTHON)
def test_a_library_of_python_with_its_defaults(library: str, server: ServerProcess) -> None:
    run(python(library, server, 20))

    for event in arrived(server, 20):
        payload = event["payload"]
        assert payload.get("message", payload.get("event")) == "hello"
        if library == "SysLogHandler":
            assert payload["severity"] == "info"


def test_socket_handler_is_told_what_to_use_instead(server: ServerProcess) -> None:
    run(python("SocketHandler", server, 3))

    wait_until(lambda: "it sends pickles, as Python's SocketHandler does: use SysLogHandler" in server.log)
    assert server.ask("STATS")["stored_total"] == 0


@pytest.mark.parametrize(
    ("options", "framing"),
    [([], "line feeds"), (["--octet-count"], "counted octets (RFC 6587)"), (["--rfc3164"], "line feeds")],
)
def test_logger(options: list[str], framing: str, server_by_program: ServerProcess) -> None:
    server = server_by_program
    if not shutil.which("logger"):
        pytest.skip("needs logger, of util-linux or bsdutils")
    run(
        [
            "logger",
            "-T",
            "-n",
            "127.0.0.1",
            "-P",
            f"{server.wrap_port}",
            "-t",
            "job",
            "-p",
            "cron.err",
            *options,
            "it's done",
        ]
    )

    (event,) = arrived(server, 1, "job")
    expected = {"message": "it's done", "facility": "cron", "severity": "err", "program": "job"}
    assert expected.items() <= event["payload"].items()
    wait_until(lambda: f"framing: {framing}" in server.log)


# --- syslog daemons


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for sockets, whose paths may not be longer than about a hundred characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


DAEMONS: Final = {
    "rsyslog": (
        rsyslog,
        'global(workDirectory="{folder}")\nmodule(load="imuxsock" SysSock.Use="off")\n'
        'input(type="imuxsock" Socket="{folder}/log" RateLimit.Interval="0")\n',
    ),
    "syslog-ng": (syslog_ng, '@version: 3.38\nsource s_src {{ unix-dgram("{folder}/log"); }};\n'),
}
"""The part that a distribution's own configuration has: where the lines come from."""


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_syslog_daemon_in_its_default_format_loses_one_line_at_most_when_the_server_restarts(
    daemon: str, server_by_program: ServerProcess, short_path: Path
) -> None:
    server = server_by_program
    program, sources = DAEMONS[daemon]
    configuration = short_path / f"{daemon}.conf"
    recipe = (FOLDER / f"{daemon}.conf").read_text()
    assert recipe.count("8082") == 1
    configuration.write_text(sources.format(folder=short_path) + recipe.replace("8082", f"{server.wrap_port}"))
    command, libraries = program(configuration, short_path)
    with subprocess.Popen(command, env={**os.environ, "LD_LIBRARY_PATH": libraries}) as process:
        try:
            wait_until((short_path / "log").exists)
            _log(short_path, "before", 50)
            arrived(server, 50)
            assert server.stop() == 0
            server.restart()
            _log(short_path, "after", 50)  # the daemon does not check whether the server has gone: it loses the first
            wait_until(lambda: len(server.listed("app")) >= 99, ARRIVES_S)
        finally:
            process.terminate()
    for event in server.listed("app"):
        assert event["payload"]["message"].split()[0] in ("before", "after")
        assert event["payload"]["program"] == "app"
        assert event["timestamp"] != event["received_at"]


def _log(folder: Path, word: str, count: int) -> None:
    for n in range(count):
        run(["logger", "-u", str(folder / "log"), "-t", "app", f"{word} {n}"])


# --- a restart of the server


@pytest.mark.parametrize("ended", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("library", ["pino-recovery", "winston-logstash", "python-logstash-async"])
def test_a_client_that_keeps_what_it_could_not_send_loses_nothing(
    library: str, ended: signal.Signals, start_server: StartServer
) -> None:
    """One line at a time is in flight: no client keeps what the kernel has accepted. SIGKILL may cost such a line."""
    server = start_server("--wrap-port", "0", changes=[changes.patient_with_silence])
    count = 60
    is_python = library in PYTHON
    command = python(library, server, count, 0.1) if is_python else node(library, server, count, 100)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        wait_until(lambda: len(server.listed("app")) >= 10, ARRIVES_S)
        if is_python:  # it sends up to 50 lines at once, and then none for seconds
            wait_until(_nothing_comes(server), ARRIVES_S)
        server.signal(ended)
        server.wait()
        server.restart()
        assert client.wait(ARRIVES_S) == 0
    in_flight = 2
    wait_until(lambda: len(server.listed("app")) >= count - in_flight, ARRIVES_S)
    assert len(server.listed("app")) <= count


def _nothing_comes(server: ServerProcess) -> Callable[[], bool]:
    """Return a function that says whether nothing has arrived for half a second."""
    seen, since = 0, time.monotonic()

    def is_quiet() -> bool:
        nonlocal seen, since
        if (count := len(server.listed("app"))) != seen:
            seen, since = count, time.monotonic()
        return time.monotonic() - since > 0.5

    return is_quiet


RESTARTED: Final = {"winston-logstash-default": 0, "log4js": 0, "pino-reconnect": 60, "rsyslog": 0}
"""Clients that keep nothing, and how many of LINES each may lose even if the server stops properly, because the client
gives up what it was writing when its connection ended. rsyslog runs without the queue of README's recipe."""

LINES: Final = 600
PACE_S: Final = 0.002
AWAY_S: Final = 1.0


@contextlib.contextmanager
def sending(library: str, server: ServerProcess, folder: Path) -> Iterator[Callable[[], object]]:
    """A client that logs LINES lines; yields a function that waits for its end."""
    if library != "rsyslog":
        command = node(library, server, LINES, round(PACE_S * 1000))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
            yield lambda: client.wait(ARRIVES_S)
        return
    program, sources = DAEMONS["rsyslog"]
    configuration = folder / "rsyslog.conf"
    configuration.write_text(f"{sources.format(folder=folder)}*.* @@127.0.0.1:{server.wrap_port}\n")
    command, libraries = program(configuration, folder)
    with subprocess.Popen(command, env={**os.environ, "LD_LIBRARY_PATH": libraries}) as daemon:
        try:
            wait_until((folder / "log").exists)
            logging = in_background(lambda: _write_lines(folder / "log"))

            def wait() -> None:
                logging.finish()
                daemon.terminate()  # it sends what it still has, and ends
                daemon.wait(ARRIVES_S)

            yield wait
        finally:
            daemon.terminate()


def _write_lines(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.connect(str(path))
        for number in range(LINES):
            one.send(f"<13>{time.strftime('%b %e %H:%M:%S')} app: {number}".encode())
            time.sleep(PACE_S)  # a busy program, but not a flood


@pytest.mark.parametrize(
    ("ended", "lives_on"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGKILL, True)],
    ids=["SIGTERM", "SIGTERM, socket lives on", "kill -9, socket lives on"],
)  # fmt: skip
@pytest.mark.parametrize("library", RESTARTED)
def test_a_restart_under_a_client_that_keeps_nothing(
    library: str,
    ended: signal.Signals,
    lives_on: bool,
    new_server: StartServer,
    short_path: Path,
    record_figures: RecordFigures,
) -> None:
    """T62: the server is away for a second; a socket from outside takes what is sent during that time."""
    with contextlib.ExitStack() as stack:
        sockets = stack.enter_context(listening("wrap", "acked")) if lives_on else {}
        options = () if lives_on else ("--wrap-port", "0")
        server = new_server(*options, passed_in=sockets, changes=[changes.patient_with_silence]).start()
        with sending(library, server, short_path) as wait:
            wait_until(lambda: server.ask("STATS")["stored_total"] >= LINES // 6, ARRIVES_S)
            server.signal(ended)
            server.wait()
            time.sleep(AWAY_S)
            server.restart()
            wait()
        assert server.stop() == 0  # it reads what is in flight
        server.restart()
        lost = LINES - server.ask("STATS")["stored_total"]
    record_figures(f"{library}, {ended.name}", socket="lives on" if lives_on else "own", sent=LINES, missing=lost)
    if lives_on and ended is signal.SIGTERM:
        assert lost <= RESTARTED[library]
    elif lives_on:
        assert lost <= RESTARTED[library] + LINES // 6  # events that the killed server had not stored
