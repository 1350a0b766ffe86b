"""The sizes of the fault tests: small enough for CI, or large enough for a release (``AGGREGATOR_FAULTS=long``)."""

from __future__ import annotations

import os
from typing import Final

LONG: Final = os.environ.get("AGGREGATOR_FAULTS") == "long"


SLACK: Final = 10
"""A promised time holds on a quiet machine, and the measured time is recorded. An assertion allows this many times the
promise: other load does not explain more, and a hang is still found."""


def _size(ci: int, long: int) -> int:
    return long if LONG else ci


KILL_ROUNDS: Final = _size(20, 100)  # T1
POWER_CUT_ROUNDS: Final = _size(3, 20)  # T2
CONTROL_ROUNDS: Final = _size(2, 20)  # T3
EIO_STEP: Final = _size(10, 1)  # T5: every how many of the first 30 syncs is tried
SWEEP_STEP: Final = _size(30, 1)  # T10, T11: every how many system calls one is tried, after the first few
SLOW_COMMITS: Final = _size(4, 30)  # T8: of each of 8 clients
STALL_S: Final = _size(12, 60)  # T40
HELD_S: Final = _size(3, 60)  # T14
LOCKED_S: Final = _size(6, 60)  # T15: in addition to 3 s
BIT_FLIPS: Final = _size(8, 50)  # T17: in the header, and anywhere
GAP_ROUNDS: Final = _size(8, 40)  # T12
DRAIN_KILL_ROUNDS: Final = _size(10, 50)  # T44

ACCOUNTED_LINES: Final = _size(2_000, 10_000)  # T22: of each of 8 clients
STREAM_EXAMPLES: Final = _size(500, 5_000)  # T23: over a socket
INTERLEAVINGS: Final = _size(4, 8)  # of rotations, copies and restarts, each with another seed
SPLIT_EXAMPLES: Final = _size(1_500, 5_000)  # T23: without a socket
MUTATED_LINES: Final = _size(60_000, 200_000)  # T28
NEMESIS_ROUNDS: Final = _size(2, 20)  # T29
STOPPED_S: Final = _size(2, 10)  # T29
UNREAD_EVENTS: Final = _size(60_000, 200_000)  # T30: enough to fill the client's buffer and the kernel's
RESETS: Final = 1_000  # T35: on each loop
CUT_S: Final = _size(5, 30)  # T36
POLITE_S: Final = _size(2, 10)  # T30, T31, T37, T38: how long latencies are measured
CHURN: Final = _size(4_000, 20_000)  # T39
SOAK_S: Final = _size(45, 1_800)  # T41: 45 s show a leak of 5 bytes an event, and CI has 4 minutes for all fault tests
HELD_COMMITS: Final = _size(1_000, 18_000)
MOVED: Final = _size(2_000, 1_000_000)
FAILOVERS: Final = _size(2, 20)
CUT_STEP: Final = _size(60, 1)  # every how many bytes a connection to PostgreSQL is cut
FUZZ_S: Final = _size(30, 600)

JOINING: Final = _size(24, 200)  # R2
FLAPS: Final = _size(10, 1_000)  # R5
CATCHING_UP: Final = _size(4, 32)  # R18: readers
CATCH_UP_S: Final = _size(6, 600)  # R18
READER_KILLS: Final = _size(4, 100)  # R6
ACK_KILLS: Final = _size(6, 60)  # R7
FEED_EXAMPLES: Final = _size(300, 10_000)  # R1
TOPICS: Final = _size(5_000, 100_000)  # R14
READER_RESETS: Final = _size(200, 1_000)  # R11: on each loop
WAITING: Final = _size(200, 500)  # R16
RESUMES: Final = _size(60, 2_000)  # R3
READER_QUERIES: Final = _size(8, 100)  # of each of 16 readers
PATTERN_EXAMPLES: Final = _size(500, 50_000)  # R14

LONG_TIMEOUT_S: Final = 3_600
"""The time limit for a test of the long run, in place of the usual one."""
