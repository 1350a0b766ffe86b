"""Measurements: each writes a result file, which plot draws and tables writes into README.md and report.md."""

from __future__ import annotations

import argparse
import sys

from bench import documents, engine, growth, handshakes, latency, load, permission, plot, stages, tls
from bench.peers import compare
from bench.subscribe import measure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (
        load,
        latency,
        tls,
        handshakes,
        growth,
        stages,
        permission,
        compare,
        measure,
        engine,
        plot,
        documents,
    ):
        module.add_command(commands)
    options = parser.parse_args()
    sys.setswitchinterval(0.0005)  # a thread that takes times must not wait for a thread that sends
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
