"""What history costs: rate, latency, memory, disk space and start, each measured again as the database grows.

Kinds of ids are compared: each has a server and a database of its own, and the servers take turns of a few seconds.
While one is measured, the others are stopped (SIGSTOP), so that their idle work does not disturb the measurement."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from bench import command, latency, load, offered, workload
from bench.asker import Asker
from bench.process import Server

PIECE: Final = 500_000
"""How many events are made and sent at a time while the database is filled; making them is not timed."""

MEASURED: Final = 500_000
"""How many events are sent to measure a rate."""

SIZES: Final = (1_000_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000)

ROUNDS: Final = 3
"""How often rates and then latencies are measured, in turns; medians count. Rates add 1 million events, all of it 3."""

OFFERED_S: Final = 5.0
RATE: Final = 5000.0

RECENT: Final = 100_000
"""Duplicates repeat one of so many newest events, because senders mostly repeat what they have sent recently."""


def add_command(commands: command.Commands) -> None:
    """Add ``growth`` to the commands of the bench."""
    one = commands.add_parser("growth", help="rate, latency, memory, disk and start, from 1 million events on")
    one.set_defaults(run=_run)
    one.add_argument("--to-events", type=int, default=25_000_000, help="stored events at the end (%(default)s)")
    one.add_argument(
        "--dup", type=float, default=0.25, help="part of the measured events that is sent twice (%(default)s)"
    )
    one.add_argument(
        "--ids", nargs="+", choices=("random", "ordered"), default=["random", "ordered"],
        help="kinds of ids: random is UUIDv4, ordered is UUIDv7 (both)",
    )  # fmt: skip
    command.add_paths(one)


def _run(options: argparse.Namespace) -> int:
    sizes = [size for size in SIZES if size < options.to_events] + [options.to_events]
    kinds = list(dict.fromkeys(options.ids))
    total = options.to_events * len(kinds)
    progress = tqdm(total=total, unit="event", unit_scale=True, disable=not sys.stderr.isatty())
    with tempfile.TemporaryDirectory(dir=options.folder) as name, progress:
        histories = [_History(Path(name) / ids, ids, options.dup, progress) for ids in kinds]
        for size in sizes:
            _measure(histories, size)
    figures: dict[str, Any] = {history.ids: _summary(history.points) for history in histories}
    if len(histories) == 2:
        one, other = (history.points for history in histories)
        figures["rate_second_to_first"] = {
            str(size): round(_rate(second) / _rate(first), 3)
            for size, first, second in zip(sizes, one, other, strict=True)
        }
    command.write("growth", options, figures)
    return command.exit_code(figures)


def _measure(histories: list[_History], size: int) -> None:
    """Fill each database up to ``size`` events, and measure everything."""
    with contextlib.ExitStack() as running:
        for history in histories:
            running.enter_context(history.serving(size))
        for measure in (_History.load, _History.offer_half_of_peak):
            for number in range(ROUNDS):
                for history in histories[:: -1 if number % 2 else 1]:
                    history.alone(measure)
        for history in histories:
            history.alone(_History.others)
    for history in histories:
        history.stopped()


def _rate(point: dict[str, Any]) -> float:
    return float(point["load"]["medians"]["events_per_s"])


def _summary(points: list[dict[str, Any]]) -> dict[str, Any]:
    first, last = points[0], points[-1]
    old_first, old_last = (one["load_old_duplicates"]["events_per_s"] for one in (first, last))
    return {
        "rate_last_to_first": round(_rate(last) / _rate(first), 3),
        "rate_last_to_first_old_duplicates": round(old_last / old_first, 3),
        "rss_last_to_first": round(last["load"]["medians"]["rss_mb"] / first["load"]["medians"]["rss_mb"], 3),
        "points": points,
    }


class _History:
    """One database that grows; ``points`` are the figures at each size."""

    def __init__(self, folder: Path, ids: workload.IdKind, duplicates: float, progress: Any) -> None:
        folder.mkdir()
        self.ids = ids
        self.points: list[dict[str, Any]] = []
        self._folder = folder
        self._duplicates = duplicates
        self._progress = progress
        self._next = 0  # the number of the first event that has not been sent yet
        self._server: Server

    @contextlib.contextmanager
    def serving(self, size: int) -> Iterator[None]:
        """Start a server, fill it up to ``size`` events, and pause it: ``alone`` resumes it."""
        with Server(self._folder) as self._server:
            filled_s = self._server.wait_until_filled()
            fill = self._fill(size)
            self.points.append({"events": self._next, "filter_filled_s": filled_s, "fill": fill})
            self._server.pause()
            try:
                yield
            finally:
                self._server.resume()

    def alone(self, measure: Callable[[_History], None]) -> None:
        """Measure something while no other server is running."""
        self._server.resume()
        measure(self)
        self._server.pause()

    def load(self) -> None:
        """The rate as fast as it goes, with duplicates of recent events."""
        self._again("load", self._load(self._next - RECENT))

    def offer_half_of_peak(self) -> None:
        """Latency at half of that rate."""
        self._again("at_half_of_peak", self._offer_half_of_peak())

    def others(self) -> None:
        """What is measured once for each size."""
        point = self.points[-1]
        point["load_old_duplicates"] = self._load(0)
        point["at_rate"] = self._offer(RATE, offered.CONNECTIONS)
        asked = self._commands()
        asker = Asker(self._server.port, asked, pause_s=0.01)
        point["at_half_of_peak_with_commands"] = self._offer_half_of_peak()
        point["commands_at_half_of_peak"] = asker.stop()
        asker = Asker(self._server.port, {name: asked[name] for name in ("STATS", "HEALTH")}, pause_s=0.01)
        point["load_with_commands"] = self._load(self._next - RECENT)
        point["commands_at_full_load"] = asker.stop()

    def stopped(self) -> None:
        """What is measured without a server, or by starting one."""
        point = self.points[-1]
        point["disk"] = self._disk()
        point["start_after_sigterm_s"] = self._start()
        point["start_after_kill_s"] = self._start_after_kill()
        point["events_at_the_end"] = self._next

    def _again(self, name: str, figures: dict[str, Any]) -> None:
        runs = self.points[-1].setdefault(name, {"runs": []})["runs"]
        runs.append(figures)
        self.points[-1][name]["medians"] = command.medians(runs)

    def _fill(self, size: int) -> dict[str, Any]:
        count, seconds, exact = 0, 0.0, True
        while self._next < size:
            work = workload.generate(min(PIECE, size - self._next), 0, 4, self.ids, self._next)
            done = load.measure("127.0.0.1", self._server.port, work)
            self._next += work.unique
            count += work.count
            seconds += done["seconds"]
            exact = exact and done["exact"]
            self._progress.update(work.unique)
        return {"events": count, "events_per_s": round(count / seconds) if seconds else None, "exact": exact}

    def _load(self, oldest: int) -> dict[str, Any]:
        work = workload.generate(MEASURED, self._duplicates, 4, self.ids, self._next, max(0, oldest))
        self._next += work.unique
        self._progress.update(work.unique)
        cpu_s = self._server.cpu_s
        done = load.measure("127.0.0.1", self._server.port, work)
        done["server_cpu_us_per_event"] = round((self._server.cpu_s - cpu_s) / work.count * 1e6, 2)
        done["rss_mb"] = round(self._server.rss_bytes / 1e6, 1)
        return done

    def _offer_half_of_peak(self) -> dict[str, Any]:
        return self._offer(_rate(self.points[-1]) / 2, latency.PEAK_CONNECTIONS)

    def _offer(self, rate: float, connections: int) -> dict[str, Any]:
        count = int(rate * OFFERED_S)
        oldest = max(0, self._next - RECENT)
        work = workload.generate(count, self._duplicates, connections, self.ids, self._next, oldest)
        self._next += work.unique
        self._progress.update(work.unique)
        return latency.at_rate(self._server.port, work, rate)

    def _commands(self) -> dict[str, bytes]:
        some = self._next // 2
        topic = workload.topic(some)
        return {
            "STATS": b"STATS\n",
            "HEALTH": b"HEALTH\n",
            "EVENTS": f"EVENTS {topic} 10\n".encode(),
            "EVENT": f"EVENT {topic} {workload.event_id(some, self.ids)}\n".encode(),
        }

    def _disk(self) -> dict[str, Any]:
        """Bytes on disk for an event, by purpose (from SQLite's dbstat table, if this SQLite has it)."""
        path = self._folder / "events.db"
        database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        ((stored,),) = database.execute("SELECT stored FROM totals").fetchall()
        parts: dict[str, float] = {"all": path.stat().st_size / stored}
        ((free,),) = database.execute("PRAGMA freelist_count").fetchall()
        parts["free"] = free * 4096 / stored
        try:
            sizes = database.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name").fetchall()
        except sqlite3.OperationalError:
            sizes = []
        for name, size in sizes:
            part = "keys" if name.startswith("keys_") else name if name in ("blocks", "postings") else "other"
            parts[part] = parts.get(part, 0.0) + size / stored
        database.close()
        return {"stored": stored, **{f"{name}_bytes_per_event": round(size, 2) for name, size in parts.items()}}

    def _start(self) -> float:
        """Seconds from the start of the server to the first ack."""
        started = time.perf_counter()
        with Server(self._folder) as server:
            self._first_ack(server)
            return round(time.perf_counter() - started, 3)

    def _start_after_kill(self) -> float:
        """Seconds from a start to the first ack, after a SIGKILL under full load."""
        server = Server(self._folder)
        server.start()
        # Numbers of the far future: it is not known which of them are stored, so that none may be sent again.
        work = workload.generate(PIECE, 0, 1, self.ids, (1 << 40) + self._next)
        killer = threading.Timer(1.0, server.end, (signal.SIGKILL,))
        killer.start()
        with_load = threading.Thread(target=_send_until_the_end, args=(server.port, work.lines[0]))
        with_load.start()
        killer.join()
        with_load.join()
        return self._start()

    def _first_ack(self, server: Server) -> None:
        with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
            connection.sendall(workload.line(self._next, self.ids))
            reply = connection.recv(4096)
            if not reply.startswith(b'{"status":"stored"'):
                raise SystemExit(f"not an ack: {reply.decode()}")
        self._next += 1


def _send_until_the_end(port: int, lines: list[bytes]) -> None:
    try:
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            threading.Thread(target=_drop_replies, args=(connection,), daemon=True).start()
            while True:
                connection.sendall(b"".join(lines))
    except OSError:
        return


def _drop_replies(connection: socket.socket) -> None:
    try:
        while connection.recv(1 << 18):
            pass
    except OSError:
        return
