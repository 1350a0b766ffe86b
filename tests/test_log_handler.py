"""The handler for Python's logging against a server that stops, dies or is not there; the program goes on."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator.client import LogHandler
from tests.harness import ROOT, wire
from tests.harness.polling import DEADLINE_S, wait_until
from tests.harness.server_process import ServerProcess


@pytest.fixture
def logger(request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    """A logger for this test only; its handlers are closed when the test ends."""
    made = logging.getLogger(f"tests.{request.node.name}")
    made.propagate = False
    made.setLevel(logging.DEBUG)
    yield made
    for handler in list(made.handlers):
        made.removeHandler(handler)
        handler.close()


def attach(logger: logging.Logger, server: ServerProcess, **options: Any) -> LogHandler:
    handler = LogHandler(port=server.port, topic="app.web", **options)
    logger.addHandler(handler)
    return handler


def payloads(server: ServerProcess) -> list[dict[str, Any]]:
    return [event["payload"] for event in server.listed("app.web")]


def messages(server: ServerProcess) -> list[str]:
    return [payload["message"] for payload in payloads(server)]


# --- what is sent


def test_a_record_becomes_an_event(server: ServerProcess, logger: logging.Logger) -> None:
    handler = attach(logger, server, source="web-1")
    before = time.time()
    logger.warning("user %s has %d items", "ann", 3, extra={"user": {"id": 7}, "tags": ["a"], "odd": object()})
    handler.flush()
    (event,) = server.listed("app.web")
    assert event["payload"] == {
        "level": "WARNING", "logger": logger.name, "message": "user ann has 3 items", "user": {"id": 7}, "tags": ["a"],
    }  # fmt: skip
    assert event["source"] == "web-1"
    assert len(event["event_id"]) == 32
    assert event["timestamp"].endswith("Z")
    assert before - 1 <= time.mktime(time.strptime(event["timestamp"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert handler.unanswered == handler.dropped == handler.rejected == 0


def test_an_exception_is_told_with_its_traceback(server: ServerProcess, logger: logging.Logger) -> None:
    handler = attach(logger, server)
    try:
        raise ZeroDivisionError("no")
    except ZeroDivisionError:
        logger.exception("failed", stack_info=True)
    handler.flush()
    (payload,) = payloads(server)
    assert (payload["level"], payload["message"]) == ("ERROR", "failed")
    assert payload["exception"].startswith("Traceback (most recent call last):\n")
    assert "ZeroDivisionError: no\nStack (most recent call last):\n" in payload["exception"]


@pytest.mark.parametrize(
    ("message", "extra", "expected"),
    [
        ("a\x00b\nc\u202e€", {}, {"message": "a\x00b\nc\u202e€"}),
        ("cut \ud83d", {}, {"message": "cut \\ud83d"}),
        ("big", {"n": 1 << 70, "m": 1 << 60}, {"message": "big", "m": 1 << 60}),
        ("own", {"level": 7, "logger": "x"}, {"message": "own"}),
        ("nan", {"x": float("nan")}, {"message": "nan", "x": None}),
    ],
    ids=["unprintable", "half a character", "large numbers", "our own names", "nan"],
)
def test_odd_records(
    server: ServerProcess, logger: logging.Logger, message: str, extra: dict[str, Any], expected: dict[str, Any]
) -> None:
    handler = attach(logger, server)
    record = logger.makeRecord(logger.name, logging.INFO, __file__, 1, message, (), None, extra=extra)
    handler.handle(record)  # directly: another handler that reports the record could not write half a character
    handler.flush()
    assert payloads(server) == [{"level": "INFO", "logger": logger.name, **expected}]


def test_a_formatter_changes_nothing(server: ServerProcess, logger: logging.Logger) -> None:
    handler = attach(logger, server)
    handler.setFormatter(logging.Formatter("<%(levelname)s> %(message)s"))
    logger.info("hello")
    handler.flush()
    assert messages(server) == ["hello"]


def test_it_can_be_configured_by_a_dictionary(server: ServerProcess, logger: logging.Logger) -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "store": {"class": "aggregator.client.LogHandler", "port": server.port, "topic": "app.web", "level": 30}
            },
            "loggers": {logger.name: {"handlers": ["store"], "level": "DEBUG"}},
        }
    )
    logger.info("below the level")
    logger.error("above")
    logger.handlers[0].flush()
    assert messages(server) == ["above"]


def test_threads_log_at_once_and_each_stays_in_order(server: ServerProcess, logger: logging.Logger) -> None:
    handler = attach(logger, server)

    def log(name: str) -> None:
        for number in range(300):
            logger.info("%s %d", name, number)

    threads = [threading.Thread(target=log, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.flush()
    stored = messages(server)
    assert len(stored) == 2400
    for name in "abcdefgh":
        assert [text for text in stored if text.startswith(name)] == [f"{name} {i}" for i in range(300)]


# --- a server that is not there


def test_a_restart_loses_and_doubles_nothing(server: ServerProcess, logger: logging.Logger) -> None:
    handler = attach(logger, server, close_s=DEADLINE_S)
    for number in range(1000):
        logger.info("%d", number)
        if number in (200, 600):
            server.kill()
        if number in (400, 900):
            server.restart()
    handler.flush()
    assert messages(server) == [str(number) for number in range(1000)]
    assert handler.dropped == 0


def test_a_server_that_hangs_holds_up_nobody_and_what_is_dropped_is_said(
    server: ServerProcess, logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = attach(logger, server, queue_records=100, close_s=DEADLINE_S)
    logger.info("first")
    handler.flush()
    server.signal(signal.SIGSTOP)
    for number in range(1000):
        logger.info("%d", number)
    assert handler.dropped == 900
    assert handler.unanswered == 100
    server.signal(signal.SIGCONT)
    wait_until(lambda: "dropped" in capfd.readouterr().err)
    handler.flush()
    *kept, hole = messages(server)
    assert kept == ["first", *map(str, range(100))]
    assert hole == "900 log records were dropped before this one"
    logger.info("last")
    handler.flush()
    assert messages(server)[-1] == "last"


def test_who_allows_it_is_held_up_so_long_and_no_longer(server: ServerProcess, logger: logging.Logger) -> None:
    handler = attach(logger, server, queue_records=1, block_s=0.5, close_s=0.1)
    server.signal(signal.SIGSTOP)
    logger.info("takes the only place")
    started = time.monotonic()
    logger.info("waits for it")
    waited_s = time.monotonic() - started
    assert 0.5 <= waited_s < DEADLINE_S
    assert handler.dropped == 1


def test_who_is_held_up_goes_on_when_there_is_room(server: ServerProcess, logger: logging.Logger) -> None:
    handler = attach(logger, server, queue_records=1, block_s=DEADLINE_S, close_s=DEADLINE_S)
    for number in range(50):
        logger.info("%d", number)
    handler.flush()
    assert messages(server) == [str(number) for number in range(50)]


def test_large_records_are_bounded_in_bytes(server: ServerProcess, logger: logging.Logger) -> None:
    handler = attach(logger, server, queue_bytes=1_000_000, close_s=DEADLINE_S)
    server.signal(signal.SIGSTOP)
    for _ in range(10):
        logger.info("x" * 300_000)
    assert (handler.unanswered, handler.dropped) == (3, 7)
    server.signal(signal.SIGCONT)
    handler.flush()
    assert len([text for text in messages(server) if text.startswith("x")]) == 3


def test_what_the_server_rejects_is_said_once(
    server: ServerProcess, logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = attach(logger, server)
    for _ in range(3):
        logger.info("x" * (2 << 20))
    logger.info("fine")
    handler.flush()
    assert handler.rejected == 3
    assert messages(server) == ["fine"]
    assert capfd.readouterr().err.count("a log record was rejected: longer than") == 1


def test_what_is_no_aggregator_is_tried_again(
    server: ServerProcess,
    logger: logging.Logger,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aggregator.client.log_handler.RETRY_S", 0.1)
    server.stop()
    handler = attach(logger, server, close_s=DEADLINE_S)
    with socket.create_server(("127.0.0.1", server.port)) as other:
        other.settimeout(DEADLINE_S)
        logger.info("one")
        logger.info("two")
        peer, _ = other.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            wait_until(lambda: "trying again" in capfd.readouterr().err)
    server.restart()
    logger.info("three")
    handler.flush()
    assert messages(server) == ["one", "two", "three"]


# --- programs


def program(text: str, *arguments: object, timeout_s: float = 2 * DEADLINE_S) -> subprocess.CompletedProcess[str]:
    prelude = "import logging, os, sys\nfrom aggregator.client import LogHandler\nport = int(sys.argv[1])\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + text, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
        timeout=timeout_s, check=False,
    )  # fmt: skip


SHORT = """
logging.basicConfig(level="INFO", handlers=[LogHandler(port=port, topic="app.web", close_s=30)])
for number in range(int(sys.argv[2])):
    logging.info("%d", number)
"""


@pytest.mark.parametrize("count", [1, 5000])
def test_the_end_of_a_program_waits_for_its_last_acks(server: ServerProcess, count: int) -> None:
    done = program(SHORT, server.port, count)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert messages(server) == [str(number) for number in range(count)]


def test_a_host_is_found_by_its_name_at_the_end_of_a_program_too(server: ServerProcess) -> None:
    done = program(SHORT.replace("port=port", "host='localhost', port=port"), server.port, 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert messages(server) == ["0"]


def test_the_end_of_a_program_waits_only_so_long() -> None:
    started = time.monotonic()
    done = program(SHORT.replace("close_s=30", "close_s=0.5"), wire.free_port(), 3)
    assert done.returncode == 0
    assert "cannot connect: Connection refused; trying again" in done.stderr
    assert done.stderr.endswith("aggregator: 3 log records have no ack\n")
    assert time.monotonic() - started < DEADLINE_S


def test_a_program_that_logs_nothing_starts_nothing() -> None:
    done = program("import threading\nLogHandler(port=port)\nprint(threading.active_count())", 1)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_record_that_cannot_be_formatted_harms_nobody(server: ServerProcess) -> None:
    text = """
logging.basicConfig(level="INFO", handlers=[LogHandler(port=port, topic="app.web", close_s=30)])
logging.info("%d", "no number")
logging.info("fine")
"""
    done = program(text, server.port)
    assert done.returncode == 0
    assert done.stderr.startswith("--- Logging error ---\n")
    assert messages(server) == ["fine"]


FORKS = """
logging.basicConfig(level="INFO", handlers=[LogHandler(port=port, topic="app.web", close_s=30)])
logging.info("parent before")
for number in range(20):
    logging.info("parent %d", number)
    if not (child := os.fork()):
        logging.info("child %d", number)
        logging.shutdown()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
logging.info("parent after")
"""


def test_a_fork_doubles_and_loses_nothing(server: ServerProcess) -> None:
    done = program(FORKS, server.port)
    assert (done.returncode, done.stderr) == (0, "")
    stored = messages(server)
    expected = [f"{who} {number}" for number in range(20) for who in ("parent", "child")]
    assert sorted(stored) == sorted(["parent before", *expected, "parent after"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_log(server: ServerProcess, method: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import logging, multiprocessing, sys\n"
        "from aggregator.client import LogHandler\n"
        "def work(number):\n"
        "    handler = LogHandler(port=int(sys.argv[1]), topic='app.web', close_s=30)\n"
        "    logger = logging.getLogger(str(number))\n"
        "    logger.addHandler(handler)\n"
        "    logger.error('%d', number)\n"
        "    handler.close()\n"
        "if __name__ == '__main__':\n"
        f"    with multiprocessing.get_context({method!r}).Pool(3) as pool:\n"
        "        pool.map(work, range(20))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, script, str(server.port)], check=True, cwd=tmp_path, env=environment, timeout=2 * DEADLINE_S
    )
    assert sorted(messages(server), key=int) == [str(number) for number in range(20)]


def test_loggers_of_asyncio_programs_are_not_held_up(server: ServerProcess) -> None:
    text = """
import asyncio, time
logging.basicConfig(level="DEBUG", handlers=[LogHandler(port=port, topic="app.web", close_s=30)])
async def main():
    for number in range(100):
        logging.info("%d", number)
        await asyncio.sleep(0)
asyncio.run(main(), debug=True)
"""
    done = program(text, server.port)
    assert (done.returncode, done.stderr) == (0, "")
    stored = [json.loads(text) for text in messages(server) if text.isdecimal()]
    assert stored == list(range(100))
