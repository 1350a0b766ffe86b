"""The numbers of STATS: each is declared once, and tells what happened."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.metric import Kind, Metric, declared
from aggregator.server.stats import Stats


class Clock:
    """``time.monotonic()``, set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def shown(stats: Stats) -> dict[str, object]:
    return {metric.name: metric.value for metric in stats.metrics()}


def test_counts_start_at_0_and_each_is_shown_under_its_own_name() -> None:
    stats = Stats()
    before = shown(stats)
    counted = {metric.name: metric for metric in declared(stats)}
    assert all(before[name] == 0 for name in counted)
    assert len(before) == len(list(stats.metrics())), "no name twice"
    for number, name in enumerate(field for field in Stats.__slots__ if not field.startswith("_")):
        setattr(stats, name, number + 1)

    assert [metric.value for metric in declared(stats)] == [number + 1 for number in range(len(counted))]


def test_each_says_what_it_means_and_how_it_behaves() -> None:
    metrics: dict[str, Metric] = {metric.name: metric for metric in Stats().metrics()}

    assert all(metric.help for metric in metrics.values())
    assert {name for name, metric in metrics.items() if metric.kind is Kind.GAUGE} == {
        "connections", "config_reload_ok", "uptime_s", "events_per_s", "commit_ms",
    }  # fmt: skip


def test_a_commit_counts_its_events_and_its_duplicates() -> None:
    stats = Stats()
    stats.committed(stored=3, duplicate=2, commit_s=0.1)
    stats.committed(stored=0, duplicate=1, commit_s=0.1)

    assert (stats.batches, stats.stored, stats.duplicate) == (2, 3, 3)


def test_the_time_since_the_start(clock: Clock) -> None:
    stats = Stats(_started=clock.now)
    clock.now += 12.3456

    assert shown(stats)["uptime_s"] == 12.346


def test_before_the_first_commit_there_are_no_percentiles() -> None:
    assert shown(Stats())["commit_ms"] == {"p50": None, "p99": None}


@pytest.mark.parametrize(
    ("durations_s", "p50", "p99"),
    [
        ([0.002], 2.0, 2.0),
        ([0.003, 0.001], 1.0, 1.0),
        ([0.003, 0.001, 0.002], 2.0, 2.0),
        ([number / 1000 for number in range(101)], 50.0, 99.0),
        ([1.0] + [0.001] * 1024, 1.0, 1.0),
    ],
    ids=["one", "two", "three", "a hundred and one", "older ones are forgotten"],
)
def test_percentiles_are_of_the_last_commits(durations_s: list[float], p50: float, p99: float) -> None:
    stats = Stats()
    for duration_s in durations_s:
        stats.committed(1, 0, duration_s)

    assert shown(stats)["commit_ms"] == {"p50": p50, "p99": p99}


def test_the_rate_is_of_whole_seconds_that_are_over(clock: Clock) -> None:
    stats = Stats(_started=clock.now)
    stats.committed(30, 20, 0.1)
    assert shown(stats)["events_per_s"] == 0.0
    clock.now += 1
    assert shown(stats)["events_per_s"] == 50.0
    clock.now += 1
    stats.committed(70, 0, 0.1)
    stats.committed(30, 0, 0.1)
    clock.now += 2
    assert shown(stats)["events_per_s"] == 37.5


def test_the_rate_forgets_after_ten_seconds(clock: Clock) -> None:
    stats = Stats(_started=clock.now)
    clock.now += 100
    stats.committed(1000, 0, 0.1)
    for passed_s, rate in ((1, 100.0), (10, 100.0), (11, 0.0), (1000, 0.0)):
        clock.now = 1100.0 + passed_s
        assert shown(stats)["events_per_s"] == rate


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100)), min_size=1, max_size=60))
def test_the_rate_is_the_mean_of_the_last_ten_seconds(commits: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(time, "monotonic", clock)
        stats = Stats(_started=clock.now)
        acked: dict[int, int] = {}
        for pause_s, count in commits:
            clock.now += pause_s
            stats.committed(count, 0, 0.1)
            acked[int(clock.now)] = acked.get(int(clock.now), 0) + count
        clock.now += 1
        window_s = min(10, int(clock.now) - 1000)
        last = range(int(clock.now) - window_s, int(clock.now))

        assert shown(stats)["events_per_s"] == round(sum(acked.get(second, 0) for second in last) / window_s, 1)
