"""The server's log on standard error. If nobody reads it, the event loop never waits, and the exit at most FLUSH_S.

(The standard library's QueueListener waits without limit when it is stopped, and its QueueHandler writes a traceback to
standard error when its queue is full.)
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Final

from aggregator import streams
from aggregator.access import token

FLUSH_S: Final = 1.0
"""How long the end of the process waits for lines that are not written yet. With a reader it takes milliseconds."""


class Log(logging.Handler):
    """A handler that writes one line for each record, in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._lines = streams.LineWriter(streams.STDERR, self._gap)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record to be written."""
        self.say(self.format(record))

    def say(self, text: str) -> None:
        """Queue a line to be written as it is."""
        self._lines.put(_encoded(text))

    def flush(self) -> None:
        """Wait for what is not written yet, up to FLUSH_S."""
        self._lines.flush(FLUSH_S)

    def _gap(self, left_out: int) -> bytes:
        text = f"{left_out} log lines are missing here, because standard error did not accept them"
        return _encoded(self.format(logging.makeLogRecord({"levelname": "WARNING", "msg": text})))


def _encoded(text: str) -> bytes:
    return f"{text}\n".encode(sys.stderr.encoding, "backslashreplace")


class _Formatter(logging.Formatter):
    """Formats with timestamps marked as UTC, and each message on one line."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        return token.redacted(super().format(record))  # here, because everything that is logged passes here

    def formatMessage(self, record: logging.LogRecord) -> str:
        if not record.message.isprintable():  # it may quote a client, and be read on a terminal
            record.message = record.message.encode("unicode_escape").decode()
        return super().formatMessage(record)


def start(level: str) -> Log:
    """Send the log to standard error, from this level on; of other packages only warnings and errors.

    Python's own messages go to the log too. Otherwise Python would write them to standard error itself, and wait.
    """
    log = Log()
    ours = logging.getLevelName(level.upper())
    logging.basicConfig(handlers=[log], level=max(ours, logging.WARNING), force=True)
    logging.getLogger("aggregator").setLevel(ours)
    logging.captureWarnings(True)
    sys.unraisablehook = _on_exception
    threading.excepthook = _on_exception
    return log


def _on_exception(found: sys.UnraisableHookArgs | threading.ExceptHookArgs) -> None:
    what = (found.exc_type, found.exc_value or found.exc_type(), found.exc_traceback)
    logging.getLogger("aggregator").error("uncaught exception", exc_info=what)
