"""The bench does what it says, in small: its workload is what it claims, and its result file has every figure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import growth, latency, workload
from bench.__main__ import main as bench_main
from bench.peers.wire import Marks
from tests.server_process import ServerProcess

ROOT = Path(__file__).parent.parent


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
    """What is repeated may be older than the workload itself, and is the same line."""
    old = {workload.line(number, "random") for number in range(100)}
    work = workload.generate(1000, 0.5, 2, "random", first=100, oldest=0)
    lines = [line for part in work.lines for line in part]
    assert any(line in old for line in lines)
    assert len(set(lines) - old) == work.unique


def run_bench(folder: Path, *arguments: str) -> dict[str, Any]:
    output = folder / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments, "--folder", str(folder), "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
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
    plots = [tmp_path / f"{number}.svg" for number in range(2)]
    for plot in plots:
        subprocess.run(
            [sys.executable, "-m", "bench", "plot", f"bench/results/{name}.json", "--output", str(plot)],
            cwd=ROOT, check=True, timeout=60,
        )  # fmt: skip
    assert plots[0].read_text().count("<svg") == 1
    assert plots[0].read_bytes() == plots[1].read_bytes()


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


def test_latency_counts_every_event_it_offers(tmp_path: Path) -> None:
    result = run_bench(tmp_path, "latency", "--events", "5000", "--runs", "1", "--seconds", "0.5", "--rate", "1000")
    (run,) = result["figures"]["runs"]
    assert run["at_rate"]["events"] == 475  # all but the first twentieth
    assert run["at_rate"]["errors"] == run["at_half_of_peak"]["errors"] == 0
    for name in ("one_in_flight", "at_rate", "at_half_of_peak"):
        assert 0 < run[name]["p50_ms"] <= run[name]["p99_ms"] <= run[name]["p100_ms"]
    assert run["in_fdatasyncs"]["at_rate_p50"] == pytest.approx(
        run["at_rate"]["p50_ms"] / run["fdatasync_p50_ms"], rel=0.01
    )


def test_latency_is_counted_from_when_an_event_was_due(server: ServerProcess) -> None:
    """A server that stands still for a while is charged for all that would have been sent meanwhile."""
    stop = threading.Timer(0.2, server.signal, (signal.SIGSTOP,))
    go_on = threading.Timer(0.7, server.signal, (signal.SIGCONT,))
    stop.start()
    go_on.start()
    figures = latency.at_rate(server.port, workload.generate(1000, 0, 4, "random"), 1000)
    assert figures["p100_ms"] > 400
    assert figures["p90_ms"] > 100  # half of the events were due in that half second


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
        cwd=ROOT, capture_output=True, text=True, timeout=100, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(output.read_text())["figures"]
    return figures


def test_every_peer_that_is_installed_holds_exactly_what_it_was_sent(tmp_path: Path) -> None:
    only = "ours (4,reference,obvious,postgresql (4 connections; batches of 1000,redis (appendfsync a,nats,rsyslog"
    figures = _peers(tmp_path, only)
    assert {"ours (4 connections)", "obvious", "redis (appendfsync always)"} < set(figures)
    for name in ("ours (4 connections)", "obvious"):  # they need nothing that is not here
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
