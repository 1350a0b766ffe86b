"""A small run of the bench of readers: it counts exactly, and finds what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from array import array
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import command, workload
from bench.subscribe import catch_up, fan_out, writer
from bench.subscribe.measure import PARTS, PEERS
from bench.subscribe.ours import Ours
from bench.subscribe.reader import Arrivals, Plan, Readers, Report
from bench.subscribe.system import System, Systems
from bench.subscribe.tally import Tally
from bench.tables import TABLES
from tests.harness.server_process import ServerProcess

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 250.0  # a run of the bench starts up to ten servers
EVENTS = 4000
READERS = 6
pytestmark = pytest.mark.timeout(TIMEOUT_S + 50)


def run_bench(folder: Path, *arguments: str, **environment: str) -> tuple[Path, dict[str, Any]]:
    output = folder / "subscribe.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "subscribe", "--events", f"{EVENTS}", "--readers", f"{READERS}",
         "--seconds", "0.2", "--runs", "1", "--folder", folder, "--output", output, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(output.read_text())
    return output, result


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The result of all parts, made once for all tests."""
    return run_bench(tmp_path_factory.mktemp("bench"))


def test_every_part_is_measured_and_every_event_counted(record: tuple[Path, dict[str, Any]]) -> None:
    _, result = record
    figures = result["figures"]
    assert set(figures) - {"not_run"} == {part.replace("-", "_") for part in PARTS}
    assert list(command.inexact(figures)) == []
    (caught,) = figures["catch_up"]["runs"]
    assert {name: one["events"] for name, one in caught["ours"].items()} == {
        "all": EVENTS, "half_of_topics": EVENTS // 2 - 4, "one_of_20": EVENTS // 20,
        "one_of_20_polled": EVENTS // 20, "one_of_1000": EVENTS // 1000,
    }  # fmt: skip
    (shapes,) = figures["fan_out"]["runs"]
    assert set(shapes) == {"6 x 5000/s", "6 x 1000/s", "6 x 100/s"}
    for shape, found in shapes.items():
        rate = int(shape.split()[2].removesuffix("/s"))
        for one in found.values():
            assert one["deliveries"] == READERS * int(rate * 0.2)
            assert one["after_sent"]["p50_ms"] <= one["after_sent"]["p99_ms"] <= one["after_sent"]["p100_ms"]
        assert found["ours"]["after_ack"]["p50_ms"] <= found["ours"]["after_sent"]["p50_ms"]
    for peer in PEERS:
        measured = peer in caught
        assert all((peer in found) is measured for found in shapes.values())
        assert (peer in figures.get("not_run", {})) is not measured
    (written,) = figures["writer"]["runs"]
    assert set(written["load"]) == {writer.NONE, writer.LIVE, writer.ONE_BEHIND, writer.ALL_BEHIND}
    assert set(written["acks"]) == {writer.NONE, writer.ALL_BEHIND}
    for name in ("idle", "stalled"):
        assert figures["memory"][name]["server_rss_mb"] > 0
    assert figures["moments"]["stored"] == EVENTS + writer.events_of_round(EVENTS // 5, 0.2)
    (stages,) = figures["stages"]["runs"]
    assert stages["us_per_event"]["sum"] > 0


def test_the_result_has_a_table_and_a_plot(record: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, result = record
    table = TABLES["subscribe"](result)
    assert f"| catch-up of {EVENTS:,} events, events/s |" in table
    assert "| memory of 6 stalled readers | ≤ 600 MB |" in table
    only = {"catch_up": result["figures"]["catch_up"], "not_run": {"redis": "no reason"}}
    table = TABLES["subscribe"]({**result, "figures": only})
    assert "fan-out" not in table
    assert "Not run: redis (no reason)." in table
    if find_spec("matplotlib"):
        drawn = []
        for _ in range(2):
            subprocess.run([sys.executable, "-m", "bench", "plot", path], cwd=ROOT, check=True, timeout=TIMEOUT_S)
            drawn.append(path.with_suffix(".svg").read_text())
        assert drawn[0] == drawn[1]
        assert drawn[0].count("<svg") == 1


def test_a_peer_whose_program_is_missing_is_reported_and_ours_is_measured(tmp_path: Path) -> None:
    _, result = run_bench(tmp_path, "--only", "catch-up", PEERS_DIR=str(tmp_path))
    assert set(result["figures"]) == {"catch_up", "not_run"}
    assert result["figures"]["not_run"]["redis"].endswith("run bench/peers/install")
    assert "redis" not in result["figures"]["catch_up"]["runs"][0]
    assert result["figures"]["catch_up"]["runs"][0]["ours"]["all"]["exact"] is True


@pytest.mark.parametrize(
    ("figures", "where"),
    [
        ({"exact": True, "errors": 0, "stats": {"errors": 5}}, []),
        ({"load": {"runs": [{"exact": True}, {"exact": False}]}, "acks": {"errors": 2}}, ["load runs 2", "acks"]),
        ([{"exact": False}], ["1"]),
    ],
)
def test_what_was_not_exact_is_named(figures: Any, where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(command.inexact(figures)) == where
    assert command.exit_code(figures) == bool(where)
    assert capsys.readouterr().err == (f"not exact: {', '.join(where)}\n" if where else "")


def test_a_part_that_does_not_exist_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "subscribe", "--only", "catch-up,nothing"],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert "'nothing' is none of catch-up" in done.stderr


def test_the_events_have_a_rare_topic_and_are_counted_by_topic() -> None:
    lines, expected = catch_up.events(3000)
    topics = [orjson.loads(line)["topic"] for line in lines]
    assert expected.all == len(lines) == len({orjson.loads(line)["event_id"] for line in lines})
    assert expected.rare == topics.count(catch_up.RARE) == 3
    assert expected.one == topics.count(catch_up.ONE)
    even = {topic for topic in workload.TOPICS if int(topic.rpartition("-")[2]) % 2 == 0}
    assert expected.half == sum(topic in even for topic in topics)


def test_shapes_have_no_more_readers_than_allowed() -> None:
    assert fan_out.shapes(1000) == list(fan_out.SHAPES)
    assert fan_out.shapes(10) == [fan_out.Shape(10, rate) for rate in (5000, 1000, 100)]


@given(st.data())
def test_what_comes_is_counted_however_it_is_cut(data: st.DataObject) -> None:
    event, other = b'{"status":"event","event":{"n":1,"seq":1}}\n', b'{"status":"caught_up","seq":1}\n'
    stream = b"".join(data.draw(st.lists(st.sampled_from([event, other]), max_size=20)))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)))))
    tally = Tally(Ours.mark)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if stream[start:end]:
            tally.add(stream[start:end])
    assert tally.events == stream.count(event)
    assert tally.lines == stream.count(b"\n")
    with pytest.raises(ConnectionError):
        tally.add(b"")


def test_a_delay_counts_from_the_moment_of_its_event_for_each_reader() -> None:
    moments = [float(number) for number in range(40)]  # the first two do not count
    at_once = Arrivals(array("d", [moment + 0.001 for moment in moments]), array("L", range(1, 41)))
    in_one = Arrivals(array("d", [50.0]), array("L", [40]))
    one = fan_out.delays(Report([at_once], 0.0), moments)
    assert one["p100_ms"] == pytest.approx(1, abs=0.02)
    both = fan_out.delays(Report([at_once, in_one], 0.0), moments)
    assert both["p100_ms"] == pytest.approx(48_000)
    assert both["p50_ms"] == pytest.approx(11_000)  # half of the deliveries took a millisecond, the others 11 to 48 s
    assert fan_out.delays(Report([Arrivals()], 0.0), moments) == {}


def test_a_peer_that_fails_is_left_out_from_then_on_and_ours_must_not_fail() -> None:
    failed: dict[str, str] = {}
    ours, peer, other = (Ours(0, port) for port in range(3))
    systems = Systems(ours, lambda name, error: failed.update({name: str(error)}))
    systems.add("peer", peer)
    systems.add("other", other)
    order: list[System] = []

    def measure(system: System) -> dict[str, Any]:
        order.append(system)
        if order.count(peer) == 2 and system is peer:
            raise RuntimeError("enough")
        return {"port": system.port}

    assert systems.each(measure, backwards=False) == {"ours": {"port": 0}, "peer": {"port": 1}, "other": {"port": 2}}
    for _ in range(2):
        assert systems.each(measure, backwards=True) == {"ours": {"port": 0}, "other": {"port": 2}}
    assert order == [ours, peer, other, other, peer, ours, other, ours]
    assert failed == {"peer": "enough"}
    with pytest.raises(ZeroDivisionError):
        systems.each(lambda system: {"port": 1 // system.port}, backwards=False)


@pytest.fixture
def ours(server: ServerProcess) -> Ours:
    return Ours(server.pid, server.port)


def test_events_that_are_missing_or_too_many_are_found(ours: Ours) -> None:
    lines = [workload.line(number, "random") for number in range(2000)]
    ours.fill(lines)
    assert ours.catch_up(2000).exact
    assert ours.catch_up(100, workload.TOPICS[0], head=2000).exact
    assert ours.poll(100, workload.TOPICS[0]).exact
    for wrong in (99, 101):
        assert not ours.catch_up(wrong, workload.TOPICS[0], head=2000).exact
    assert not ours.catch_up(2000, head=2001).exact
    assert not ours.poll(101, workload.TOPICS[0]).exact


def test_readers_say_what_came_to_each_and_that_they_were_refused(ours: Ours) -> None:
    lines = [workload.line(number, "random") for number in range(300)]
    with Readers(Plan(ours.port, 3, ours.greeting, ours.ready, ours.mark, expected=300)) as readers:
        ours.fill(lines)
        report = readers.finish()
    assert [one.events for one in report.readers] == [300] * 3
    assert report.events == 900
    for one in report.readers:
        assert list(one.moments) == sorted(one.moments)
        assert one.last.endswith(b"}\n")
    plan = Plan(ours.port, 2, b"SUBSCRIBE * AFTER 0\n", b'"subscribed"', ours.mark, stalled=True)
    with Readers(plan) as readers:
        assert readers.stop().events == 0
    with (
        pytest.raises(RuntimeError, match="not ready"),
        Readers(Plan(ours.port, 1, b"SUBSCRIBE [\n", ours.ready, ours.mark)),
    ):
        pass
