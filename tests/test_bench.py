"""The bench does what it says, in small: its workload is what it claims, and its result file has every figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import workload
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


@pytest.mark.parametrize("own", [True, False])
def test_load_checks_and_measures_everything(server: ServerProcess, tmp_path: Path, own: bool) -> None:
    output = tmp_path / "result.json"
    to = [] if own else ["--to", f"127.0.0.1:{server.port}"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "load", "--events", "5000", "--runs", "1", "--rate", "1000", *to,
         "--folder", str(tmp_path), "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert set(result) == {"bench", "measured_at", "commit", "machine", "versions", "settings", "figures"}
    (run,) = result["figures"]["runs"]
    assert run["exact"] is True
    assert run["stored"] == run["expected_stored"]
    assert run["stored"] + run["duplicate"] == 5000
    assert run["errors"] == run["latency"]["errors"] == 0
    assert 0 < run["latency"]["p50_ms"] <= run["latency"]["p99_ms"]
    assert run["of_ceiling"] > 0
    assert ("server_cpu_us_per_event" in run) is own


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
    figures = _peers(tmp_path, "redis,postgresql,nats,rsyslog,syslog-ng,ours (1", PEERS_DIR=str(tmp_path))
    (ours,) = figures.pop("ours (1 connection)")["runs"]
    assert ours["exact"] is True
    assert len(figures) == 14
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
