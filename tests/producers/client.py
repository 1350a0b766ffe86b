"""``python client.py LIBRARY PORT COUNT DELAY_S`` logs "hello" with n, set up as the library's documentation says."""

from __future__ import annotations

import logging
import logging.handlers
import socket
import sys
import time
from collections.abc import Callable

library, port, count, delay_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
address = ("127.0.0.1", port)


def pump(log: Callable[[int], None]) -> None:
    for n in range(count):
        log(n)
        time.sleep(delay_s)


def with_handler(handler: logging.Handler) -> None:
    logger = logging.getLogger("app")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    pump(lambda n: logger.info("hello", extra={"n": n}))
    logging.shutdown()


def syslog_handler() -> None:
    with_handler(logging.handlers.SysLogHandler(address, socktype=socket.SOCK_STREAM))


def socket_handler() -> None:
    with_handler(logging.handlers.SocketHandler(*address))


def logstash_async() -> None:
    from logstash_async.handler import AsynchronousLogstashHandler

    with_handler(AsynchronousLogstashHandler(*address, database_path=None))


def structlog_on_a_socket() -> None:
    import structlog

    file = socket.create_connection(address).makefile("w", buffering=1)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(file),
    )
    logger = structlog.get_logger()
    pump(lambda n: logger.info("hello", n=n))
    file.close()


LIBRARIES: dict[str, Callable[[], None]] = {
    "SysLogHandler": syslog_handler,
    "SocketHandler": socket_handler,
    "python-logstash-async": logstash_async,
    "structlog": structlog_on_a_socket,
}

if __name__ == "__main__":
    LIBRARIES[library]()
