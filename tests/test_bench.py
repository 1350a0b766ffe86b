"""A small run of the bench: its workload, its sender, its result files, and the tables made from them."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import command, growth, offered, result, workload
from bench.__main__ import main as bench_main
from bench.channel import Channel, Marks, SocketChannel
from bench.tables import TABLES
from tests.harness.server_process import ServerProcess

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 250.0  # a run of the bench starts a dozen servers
pytestmark = pytest.mark.timeout(TIMEOUT_S + 50)


@pytest.mark.parametrize("ids", ["random", "ordered"])
def test_a_workload_has_the_duplicates_it_claims_and_can_be_made_again(ids: workload.IdKind) -> None:
    work = workload.generate(4000, 0.25, 4, ids)
    lines = [line for part in work.lines for line in part]
    keys = {(one["topic"], one["event_id"]) for one in map(orjson.loads, lines)}
    assert len(lines) == work.count == 4000
    assert len(keys) == work.unique
    assert 0.2 < 1 - work.unique / work.count < 0.3
    assert workload.generate(4000, 0.25, 4, ids) == work


@pytest.mark.parametrize(("ids", "grows"), [("random", False), ("ordered", True)])
def test_ordered_ids_grow_and_random_ones_do_not(ids: workload.IdKind, grows: bool) -> None:
    (lines,) = workload.generate(3000, 0, 1, ids).lines
    found = [orjson.loads(line)["event_id"][:13] for line in lines]
    assert (found == sorted(found)) is grows


def test_an_event_of_the_history_can_be_made_again() -> None:
    """A repeated event may be older than the workload itself; its line is the same."""
    old = {workload.line(number, "random") for number in range(100)}
    work = workload.generate(1000, 0.5, 2, "random", first=100, oldest=0)
    lines = [line for part in work.lines for line in part]
    assert any(line in old for line in lines)
    assert len(set(lines) - old) == work.unique


def run_bench(folder: Path, *arguments: str) -> dict[str, Any]:
    output = folder / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments, "--folder", str(folder), "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(output.read_text())
    known = {"bench", "measured_at", "commit", "machine", "versions", "glibc_tunables", "settings", "figures"}
    assert set(result) == known
    assert result["glibc_tunables"] == os.environ.get("GLIBC_TUNABLES", "")
    return result


@pytest.mark.skipif(not find_spec("matplotlib"), reason="needs matplotlib (extra bench)")
@pytest.mark.parametrize("name", ["load", "latency", "growth", "peers"])
def test_a_result_is_drawn_the_same_each_time(tmp_path: Path, name: str) -> None:
    record = Path(shutil.copy(next(result.RESULTS.glob(f"*/{name}.json")), tmp_path))
    drawn = []
    for _ in range(2):
        subprocess.run([sys.executable, "-m", "bench", "plot", record], cwd=ROOT, check=True, timeout=TIMEOUT_S)
        drawn.append(record.with_suffix(".svg").read_text())
    assert drawn[0].count("<svg") == 1
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("own", [True, False])
def test_load_checks_and_measures_everything(server: ServerProcess, tmp_path: Path, own: bool) -> None:
    to = [] if own else ["--to", f"127.0.0.1:{server.port}", "--ids", "random"]
    result = run_bench(tmp_path, "load", "--events", "5000", "--runs", "1", *to)
    (run,) = result["figures"]["runs"]
    assert set(run) == ({"random", "ordered"} if own else {"random"})
    for one in run.values():
        assert one["exact"] is True
        assert one["stored"] == one["expected_stored"]
        assert one["stored"] + one["duplicate"] == 5000
        assert one["errors"] == 0
        assert one["of_ceiling"] > 0
        assert ("server_cpu_us_per_event" in one) is own
    medians = result["figures"]["medians"]["random"]
    assert medians["events_per_s"] == run["random"]["events_per_s"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_tls_is_measured_beside_plain(tmp_path: Path) -> None:
    result = run_bench(tmp_path, "tls", "--events", "5000", "--runs", "1")
    for run in result["figures"]["runs"]:
        for name in ("plain", "tls"):
            assert run[name]["exact"] is True
            assert run[name]["stored"] == 5000
            assert run[name]["one_in_flight"]["events"] > 0
        assert all(ratio > 0 for ratio in run["tls_over_plain"].values())


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_acks_are_measured_under_handshakes(tmp_path: Path) -> None:
    result = run_bench(tmp_path, "handshakes", "--rate", "500", "--seconds", "1", "--handshakes", "50", "--runs", "1")
    (run,) = result["figures"]["runs"]
    for part in ("quiet", "flooded"):
        assert run[part]["events"] == 475  # all but the first twentieth
        assert run[part]["errors"] == 0
    assert run["flooded"]["handshakes_answered_per_s"] > 0
    assert run["flooded_over_quiet"]["p99_ms"] > 0


def test_latency_counts_every_event_it_offers(tmp_path: Path) -> None:
    result = run_bench(tmp_path, "latency", "--events", "5000", "--runs", "1", "--seconds", "0.5", "--rate", "1000")
    (run,) = result["figures"]["runs"]
    assert run["at_rate"]["events"] == 475  # all but the first twentieth
    assert run["at_rate"]["errors"] == run["at_half_of_peak"]["errors"] == 0
    assert run["at_rate"]["connections"] == offered.CONNECTIONS
    for name in ("at_rate", "at_half_of_peak"):
        sender = run[name]["sender"]
        assert 0 <= sender["late_p50_ms"] <= sender["late_p99_ms"]
        assert sender["cpu_us_per_event"] > 0
    for name in ("one_in_flight", "at_rate", "at_half_of_peak"):
        assert 0 < run[name]["p50_ms"] <= run[name]["p99_ms"] <= run[name]["p100_ms"]
    assert run["in_fdatasyncs"]["at_rate_p50"] == pytest.approx(
        run["at_rate"]["p50_ms"] / run["fdatasync_p50_ms"], rel=0.05
    )


class _Time:
    """A clock that moves only while waiting, by the time asked for and sometimes more."""

    def __init__(self, late_s: random.Random, channels: list[_Echo]) -> None:
        self.now = 1000.0
        self.stalled_until = 0.0
        self._late_s = late_s
        self._channels = channels

    def clock(self) -> float:
        return self.now

    def wait(
        self, readable: Iterable[int], writable: Iterable[int], other: Iterable[int], timeout_s: float
    ) -> tuple[list[int], list[int], list[int]]:
        if self.now < self.stalled_until:
            self.now = min(self.now + timeout_s, self.stalled_until)
            return [], [], []
        ready = [channel.fileno() for channel in self._channels if channel.unanswered]
        self.now += self._late_s.choice((1e-6, 1e-5, 0.002)) if ready else timeout_s + self._late_s.choice((0.0, 0.003))
        return ready, [], []


class _Echo(Channel):
    """Acks everything that it was sent when it is next read."""

    unsent = False

    def __init__(self, number: int, count: int) -> None:
        super().__init__(count)
        self._number = number
        self.unanswered = 0
        self.closed = False

    def fileno(self) -> int:
        return self._number

    def send(self, start: int, end: int) -> None:
        assert start == len(self.left)
        self.unanswered += end - start

    def flush(self) -> None:
        raise AssertionError("nothing is unsent")

    def receive(self) -> int:
        acks, self.unanswered = self.unanswered, 0
        return acks

    def close(self) -> None:
        self.closed = True


@given(st.floats(10, 500_000), st.integers(1, 5), st.integers(1, 300), st.randoms(use_true_random=False))
def test_no_event_leaves_before_its_moment_and_no_latency_is_negative(
    rate: float, width: int, count: int, late_s: random.Random
) -> None:
    channels = [_Echo(number, len(range(number, count, width))) for number in range(width)]
    time = _Time(late_s, channels)
    plan = offered.Schedule(time.now + offered.LEAD_S, rate, count)
    figures = offered.offer(channels, rate, time.clock, time.wait)
    for which, channel in enumerate(channels):
        assert len(channel.left) == len(channel.acked) == channel.count
        for place, (left, acked) in enumerate(zip(channel.left, channel.acked, strict=True)):
            assert plan.moment(place * width + which) <= left <= acked
        assert channel.closed
    assert figures["errors"] == 0
    assert 0 <= figures["sender"]["late_p50_ms"] <= figures["p100_ms"]


def test_latency_is_counted_from_when_an_event_was_due() -> None:
    """A server that stands still for a while is charged for every event that was due in that time."""
    channels = [_Echo(number, 250) for number in range(4)]
    time = _Time(random.Random(1), channels)
    time.stalled_until = time.now + offered.LEAD_S + 0.5
    figures = offered.offer(channels, 1000, time.clock, time.wait)
    assert figures["events"] == 950  # all but the first twentieth
    assert figures["p100_ms"] == pytest.approx(450, abs=10)  # and those were due in the first 50 ms
    assert figures["p90_ms"] == pytest.approx(355, abs=10)
    assert figures["p50_ms"] < 10
    assert figures["sender"]["late_p99_ms"] < 10  # the sender did not wait for the server


@given(st.floats(0, 1e6), st.floats(0.1, 1e6), st.integers(0, 1000), st.floats(-1, 1e6))
def test_what_is_due_has_had_its_moment(started: float, rate: float, count: int, after_s: float) -> None:
    plan, now = offered.Schedule(started, rate, count), started + after_s
    due = plan.due(now)
    assert 0 <= due <= count
    assert due == 0 or plan.moment(due - 1) <= now
    assert due == count or plan.moment(due) > now


def test_an_event_that_left_early_is_no_measurement() -> None:
    plan = offered.Schedule(10.0, 100, 1)
    assert offered.after_due(plan, [[10.0]]) == [0.0]
    with pytest.raises(AssertionError, match="before it was due"):
        offered.after_due(plan, [[9.999]])


def test_a_channel_keeps_what_the_kernel_does_not_take_and_sends_it_in_order() -> None:
    events = [b"%d" % (number % 10) * 1000 for number in range(1000)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    channel = SocketChannel(ours, events, b";")
    with theirs:
        channel.send(0, 999)
        assert channel.unsent
        channel.send(999, 1000)
        received = b""
        while len(received) < 1_000_000:
            received += theirs.recv(1 << 16)
            channel.flush()
        assert received == b"".join(events)
        assert not channel.unsent
        theirs.sendall(b"one;two;thr")
        assert _receive(channel) == 2
        theirs.sendall(b"ee;")
        assert _receive(channel) == 1
    with pytest.raises(ConnectionError):
        _receive(channel)
    channel.close()


def _receive(channel: SocketChannel) -> int:
    select.select([channel], [], [], TIMEOUT_S)
    return channel.receive()


def test_growth_measures_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PIECE", 1000), ("MEASURED", 2000), ("SIZES", (2000,)), ("OFFERED_S", 0.5), ("RECENT", 500)):
        monkeypatch.setattr(growth, name, value)
    output = tmp_path / "result.json"
    monkeypatch.setattr(
        sys, "argv", ["bench", "growth", "--to-events", "20000", "--folder", str(tmp_path), "--output", str(output)]
    )
    assert bench_main() == 0
    figures = json.loads(output.read_text())["figures"]
    for ids in ("random", "ordered"):
        _check_history(*figures[ids]["points"])
    for size, place in (("2000", 0), ("20000", 1)):
        rates = [figures[ids]["points"][place]["load"]["medians"]["events_per_s"] for ids in ("random", "ordered")]
        assert figures["rate_second_to_first"][size] == pytest.approx(rates[1] / rates[0], abs=0.001)


def _check_history(first: dict[str, Any], last: dict[str, Any]) -> None:
    assert first["events"] == 2000
    assert last["events"] == max(first["events_at_the_end"], 20_000) < last["events_at_the_end"]
    for point in (first, last):
        assert [run["exact"] for run in point["load"]["runs"]] == [True] * growth.ROUNDS
        assert [run["errors"] for run in point["at_half_of_peak"]["runs"]] == [0] * growth.ROUNDS
        for name in ("load_old_duplicates", "load_with_commands"):
            assert point[name]["exact"] is True
        assert set(point["commands_at_half_of_peak"]) == {"STATS", "HEALTH", "EVENTS", "EVENT"}
        assert set(point["commands_at_full_load"]) <= {"STATS", "HEALTH"}
        assert point["disk"]["all_bytes_per_event"] > 240
        assert 0 < point["start_after_sigterm_s"] < 30
        assert 0 < point["start_after_kill_s"] < 30
    assert last["disk"]["stored"] > first["disk"]["stored"]


def _peers(folder: Path, only: str, **environment: str) -> dict[str, Any]:
    output = folder / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "peers", "--events", "2000", "--runs", "1", "--rows", "1000", "--only", only,
         "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(output.read_text())["figures"]
    return figures


def test_every_peer_that_is_installed_holds_exactly_what_it_was_sent(tmp_path: Path) -> None:
    only = "ours (4,reference,obvious,postgresql (4 connections; batches of 1000,redis (appendfsync a,nats,rsyslog"
    figures = _peers(tmp_path, only)
    assert {"ours (4 connections)", "obvious", "redis (appendfsync always)"} < set(figures)
    for name in ("ours (4 connections)", "obvious"):  # they need nothing that has to be installed
        assert figures[name]["runs"]
    unique = workload.generate(2000, 0.25, 1, "random").unique
    for name, peer in figures.items():
        assert peer["guarantee"]
        for run in peer["runs"]:
            assert run["exact"] is True
            assert run["events_per_s"] > 0
            if run["events"] == 2000:
                assert run["stored"] == (2000 if name == "rsyslog" else unique)
            if "latency" in run:
                assert 0 < run["latency"]["p50_ms"] <= run["latency"]["p99_ms"]
                assert run["latency"]["connections"] == offered.CONNECTIONS
        assert bool(peer["runs"]) is ("not_run" not in peer)


def test_a_peer_whose_program_is_missing_is_reported_and_the_others_are_measured(tmp_path: Path) -> None:
    figures = _peers(tmp_path, "redis,postgresql,rsyslog,syslog-ng,ours (1", PEERS_DIR=str(tmp_path))
    for name in ("ours (1 connection)", "ours (1 connection; 1000 rows)"):
        (ours,) = figures.pop(name)["runs"]
        assert ours["exact"] is True
    assert len(figures) == 12
    for peer in figures.values():
        assert peer["not_run"].endswith("run bench/peers/install")
        assert not peer["runs"]


@pytest.mark.parametrize("mark", [b"\n", b"\r\n", b'"seq"'])
@given(st.data())
def test_replies_are_counted_however_they_are_cut(mark: bytes, data: st.DataObject) -> None:
    replies = data.draw(st.lists(st.sampled_from([b"+ok", b'{"s', b"\r", mark]), max_size=30))
    stream = b"".join(replies)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    marks = Marks(mark)
    assert sum(marks.count(piece) for piece in pieces) == stream.count(mark)


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        ("AMD EPYC", "epyc"),
        ("AMD EPYC 7763 64-Core Processor", "epyc-7763"),
        ("Intel(R) Xeon(R) Processor", "xeon"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "xeon-platinum-8375c"),
        ("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", "core-i7-8700"),
        ("aarch64", "aarch64"),
        ("../CPU", "unknown"),
    ],
)
def test_a_machine_has_a_short_name(cpu: str, name: str) -> None:
    assert result.machine_name(cpu) == name


def test_medians_are_of_each_figure_and_only_of_numbers() -> None:
    runs = [
        {"rate": rate, "exact": True, "times": [1, 2], "inner": {"p50_ms": rate / 10}, "stats": {"uptime": 1}, **more}
        for rate, more in ((30, {}), (10, {"kind": "x"}), (20, {}))
    ]
    assert command.medians(runs) == {"rate": 20, "inner": {"p50_ms": 2.0}}
    assert command.medians(runs[:2])["rate"] == 20


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of two machines, of which ``epyc`` was measured later, in place of the results of record."""
    monkeypatch.setattr(result, "RESULTS", tmp_path / "results")
    for cpu, day, rate in (("AMD EPYC", "2026-02-02", 222_222), ("Intel(R) Xeon(R) Processor", "2026-01-01", 111_111)):
        run = {"events_per_s": rate, "ceiling_per_s": 500_000, "of_ceiling": rate / 500_000, "errors": 0,
               "server_cpu_us_per_event": 6.5, "server_rss_mb": 215.0, "exact": True}  # fmt: skip
        record = result.describe("load", {}, {"medians": command.medians([{"random": run}]), "runs": [{"random": run}]})
        record["machine"]["cpu"], record["measured_at"] = cpu, f"{day}T00:00:00+00:00"
        result.write(record, tmp_path / "results" / result.machine_name(cpu) / "load.json")
    return tmp_path


def _tables(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", "tables", *map(str, arguments)])
    return bench_main()


def test_tables_are_written_from_result_files_and_a_changed_number_is_found(
    records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = records / "report.md"
    document.write_text(
        "Before.\n\n<!-- table load -->\n<!-- /table -->\n\nBetween.\n\n"
        "<!-- table load machine=xeon -->\nold\n<!-- /table -->\n\n"
        "It takes <!-- figure load/runs/0/random/events_per_s format=,.0f -->1<!-- /figure --> events/s.\n"
    )
    assert _tables(monkeypatch, "--check", document) == 1
    assert "222,222" not in document.read_text(), "--check writes nothing"
    assert _tables(monkeypatch, document) == 0
    newest, of_xeon = document.read_text().split("Between.")
    assert "| acked, fsynced, deduplicated events/s |  | 222,222 |" in newest
    assert "AMD EPYC" in newest
    assert "(results/epyc/load.json)" in newest
    assert "| acked, fsynced, deduplicated events/s |  | 111,111 |" in of_xeon
    assert "old" not in of_xeon
    assert of_xeon.endswith("format=,.0f -->222,222<!-- /figure --> events/s.\n")
    assert _tables(monkeypatch, "--check", document) == 0

    capsys.readouterr()
    document.write_text(document.read_text().replace("| 222,222 |", "| 222,223 |"))
    assert _tables(monkeypatch, "--check", document) == 1
    assert [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "table load is not up to date: run python -m bench tables"
    ]


@pytest.mark.parametrize(
    ("marked", "why"),
    [
        ("<!-- table load -->\n", "a marker is not closed"),
        ("<!-- table load -->\n<!-- table load -->\n<!-- /table -->\n", "a marker is not closed"),
        ("<!-- table nothing -->\n<!-- /table -->\n", "table nothing"),
        ("<!-- table load machine=m1 -->\n<!-- /table -->\n", "table load"),
        ("<!-- figure load/medians/nothing -->1<!-- /figure -->\n", "figure load/medians/nothing"),
    ],
)
def test_a_marker_that_says_nothing_is_an_error(
    records: Path, monkeypatch: pytest.MonkeyPatch, marked: str, why: str
) -> None:
    document = records / "report.md"
    document.write_text(marked)
    with pytest.raises(SystemExit, match=why):
        _tables(monkeypatch, document)
    assert document.read_text() == marked


@pytest.mark.parametrize("path", sorted(result.RESULTS.glob("*/*.json")), ids=lambda path: "/".join(path.parts[-2:]))
def test_every_record_has_its_table(path: Path) -> None:
    record = json.loads(path.read_text())
    assert path.parent.name == result.machine_name(record["machine"]["cpu"])
    tables = [block for block in TABLES[path.stem](record).split("\n\n") if block.startswith("|")]
    assert tables
    for block in tables:
        rows = block.strip().split("\n")
        assert len(rows) > 2
        assert len({row.count("|") for row in rows}) == 1


def test_a_result_replaces_the_record_of_its_own_machine(records: Path) -> None:
    described = result.describe("load", {}, {"medians": {}})
    result.write(described, None)
    own = result.RESULTS / result.machine_name(described["machine"]["cpu"]) / "load.json"
    assert json.loads(own.read_text()) == described
