"""Commands that are sent one after another while something else runs."""

from __future__ import annotations

import socket
import threading
import time
from typing import Final

from bench.percentiles import percentiles

STALL_S: Final = 60.0


class Asker:
    """Sends commands one after another, in turn, while something else runs; ``stop`` returns their latencies."""

    def __init__(self, port: int, commands: dict[str, bytes], pause_s: float) -> None:
        self._port = port
        self._commands = commands
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._latencies_s: dict[str, list[float]] = {name: [] for name in commands}
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def stop(self) -> dict[str, dict[str, float]]:
        """The latencies of each command, by its name."""
        self._stop.set()
        self._thread.join()
        return {name: {"count": len(found), **percentiles(found)} for name, found in self._latencies_s.items() if found}

    def _ask(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), STALL_S) as connection:
            while not self._stop.is_set():
                for name, command in self._commands.items():
                    started = time.perf_counter()
                    connection.sendall(command)
                    reply = b""
                    while not reply.endswith(b"\n"):
                        data = connection.recv(1 << 18)
                        if not data:
                            return
                        reply += data
                    self._latencies_s[name].append(time.perf_counter() - started)
                    if not reply.startswith(b'{"status":"ok"'):
                        raise SystemExit(f"{command!r} got the reply {reply[:200]!r}")
                    self._stop.wait(self._pause_s)
