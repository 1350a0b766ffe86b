"""Real clients of the Forward port, from their package registries."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import free_port

pytestmark = pytest.mark.shipper

HERE = Path(__file__).parent
NODE_PACKAGE = Path(os.environ.get("SHIPPERS_DIR", "/opt/aggregator-shippers")) / "fluent-org-logger"

needs_node = pytest.mark.skipif(
    not shutil.which("node") or not NODE_PACKAGE.exists(),
    reason=f"needs node, and @fluent-org/logger in {NODE_PACKAGE}: run {HERE / 'install'}",
)
needs_fluent_logger = pytest.mark.skipif(
    importlib.util.find_spec("fluent") is None, reason="needs fluent-logger (the extra `test`)"
)

SENT_S = 60.0
"""How long a client may take to send everything, with the restarts in between."""


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    """A running server with a Forward port whose number survives a restart."""
    return start_server("--forward-port", str(free_port()))


def stored_total(server: ServerProcess) -> int:
    total: int = server.ask("STATS")["stored_total"]
    return total


# --- @fluent-org/logger


def start_node(server: ServerProcess, mode: str, count: int, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["node", str(HERE / "client.js"), str(server.port_of("forward")), mode, str(count), *more],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "NODE_PATH": str(NODE_PACKAGE / "node_modules")},
    )  # fmt: skip


@needs_node
@pytest.mark.parametrize("mode", ["Message", "Forward", "PackedForward", "CompressedPackedForward"])
def test_node_in_every_mode(server: ServerProcess, mode: str) -> None:
    said, _ = start_node(server, mode, 500).communicate(timeout=SENT_S)
    assert said == "500\n"
    events = server.listed("app.js")
    assert sorted(event["payload"]["n"] for event in events) == list(range(500))
    assert {event["payload"]["text"] for event in events} == {"größe"}
    assert abs(time.time() - time.mktime(time.strptime(events[0]["timestamp"][:19], "%Y-%m-%dT%H:%M:%S"))) < 86_400
    assert "WARNING" not in server.log


@needs_node
@pytest.mark.parametrize(("key", "count"), [("a secret", 100), ("no secret", 0)])
def test_node_with_a_shared_key(start_server: StartServer, tmp_path: Path, key: str, count: int) -> None:
    (tmp_path / "key").write_text("a secret\n")
    server = start_server("--forward-port", "0", "--forward-shared-key-file", str(tmp_path / "key"))
    client = start_node(server, "PackedForward", 100, key)
    if count:
        assert client.communicate(timeout=SENT_S)[0] == "100\n"
    else:
        wait_until(lambda: "closed: its shared key is wrong" in server.log)
        client.kill()
        client.communicate()
    assert stored_total(server) == count


@needs_node
@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "kill -9"])
def test_node_loses_and_doubles_nothing_over_restarts(start_server: StartServer, kill: bool) -> None:
    """T64: the client renames a chunk when it sends it again, so after a kill the records need their own ids."""
    server = start_server("--forward-port", str(free_port()), *(["--forward-id", "n"] if kill else []))
    client = start_node(server, "PackedForward", 3000)
    for _ in range(2):
        goal = stored_total(server) + 500
        wait_until(lambda goal=goal: stored_total(server) >= goal)  # type: ignore[misc]
        if kill:
            server.kill()
        else:
            assert server.stop() == 0
        server.restart()
    said, _ = client.communicate(timeout=SENT_S)
    assert said == "3000\n"
    numbers = [event["payload"]["n"] for event in server.listed("app.js")]
    assert sorted(numbers) == list(range(3000))  # none is missing, and none is there twice


# --- fluent-logger


@pytest.fixture
def sender(server: ServerProcess) -> Iterator[Any]:
    """fluent-logger's sender. It asks for no acks, and keeps what it could not send until its next call."""
    from fluent.sender import FluentSender

    made = FluentSender("app", port=server.port_of("forward"), nanosecond_precision=True)
    yield made
    made.close()


@needs_fluent_logger
def test_fluent_logger(server: ServerProcess, sender: Any) -> None:
    for n in range(500):
        assert sender.emit("py", {"n": n, "raw": b"\xff"})
    wait_until(lambda: stored_total(server) == 500)
    events = server.listed("app.py")
    assert [event["payload"] for event in events] == [{"n": n, "raw": "\\xff"} for n in range(500)]


@needs_fluent_logger
def test_fluent_logger_loses_nothing_when_the_server_is_stopped_in_order(server: ServerProcess, sender: Any) -> None:
    for n in range(3000):
        sender.emit("py", {"n": n})
        if n in (1000, 2000):
            assert server.stop() == 0
        if n in (1100, 2100):
            server.restart()
    sender.emit("py", {"n": 3000})
    wait_until(lambda: stored_total(server) == 3001)
    assert sorted(event["payload"]["n"] for event in server.listed("app.py")) == list(range(3001))


@needs_fluent_logger
def test_the_handler_of_fluent_logger(server: ServerProcess) -> None:
    from fluent.handler import FluentHandler, FluentRecordFormatter

    handler = FluentHandler("app.log", port=server.port_of("forward"))
    handler.setFormatter(FluentRecordFormatter({"level": "%(levelname)s", "where": "%(module)s"}))
    logger = logging.getLogger("tests.forward")
    logger.addHandler(handler)
    try:
        logger.warning("it is %s", "warm")
    finally:
        logger.removeHandler(handler)
        handler.close()
    wait_until(lambda: stored_total(server) == 1)
    (event,) = server.listed("app.log")
    assert event["payload"] == {"level": "WARNING", "where": "test_clients", "message": "it is warm"}


# --- the recipes of README

RECIPES = HERE / "recipes"
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.iterdir()))
def test_the_recipes_are_the_ones_that_readme_shows(name: str) -> None:
    assert (RECIPES / name).read_text() in README


def run_recipe(server: ServerProcess, name: str, *command: str) -> None:
    text = (RECIPES / name).read_text()
    assert text.count("24224") == 1
    text = text.replace("24224", str(server.port_of("forward")))
    environment = {**os.environ, "NODE_PATH": str(NODE_PACKAGE / "node_modules")}
    subprocess.run([*command, text], check=True, timeout=SENT_S, env=environment)


@needs_fluent_logger
def test_the_recipe_for_fluent_logger(server: ServerProcess) -> None:
    run_recipe(server, "fluent_logger.py", sys.executable, "-c")
    wait_until(lambda: stored_total(server) == 1)
    (event,) = server.listed("app.web")
    assert event["payload"].pop("host")
    assert event["payload"] == {"level": "WARNING", "logger": "root", "message": "the disk is 91 % full"}


@needs_node
def test_the_recipe_for_node(start_server: StartServer) -> None:
    server = start_server("--forward-port", "0", "--forward-id", "id")
    run_recipe(server, "fluent_org_logger.js", "node", "-e")
    (event,) = server.listed("app.web")
    assert event["event_id"] == event["payload"]["id"]
    assert event["payload"]["message"] == "started"
