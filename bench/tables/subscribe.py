"""Readers: compared with other systems, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from bench.subscribe import writer
from bench.tables import markdown
from bench.tables.markdown import ms, whole

SYSTEMS: Final = {"ours": "ours", "nats": "NATS", "redis": "Redis"}


def table(record: dict[str, Any]) -> str:
    """Two tables: all systems, and ours against its bars. A part that was not run has no rows."""
    figures = record["figures"]
    tables = []
    if beside := [*_catch_ups(figures), *_fan_outs(figures)]:
        runs = {len(figures[part]["runs"]) for part in ("catch_up", "fan_out") if part in figures}
        versions = {"nats": record["versions"].get("nats-server", ""), "redis": record["versions"].get("redis", "")}
        heads = [f"{shown} {versions.get(name, '')}".strip() for name, shown in SYSTEMS.items()]
        tables.append(markdown.rows([f"medians of {', '.join(map(str, runs))}", "bar", *heads], *beside))
    if own := [*_parts_of(figures), *_delays(figures), *_writers(figures), *_others(figures)]:
        tables.append(markdown.rows(["ours", "bar", "measured"], *own))
    if missing := [f"{name} ({why})" for name, why in figures.get("not_run", {}).items()]:
        tables.append(f"Not run: {'; '.join(missing)}.\n")
    return "\n".join(tables)


def _catch_ups(figures: dict[str, Any]) -> Iterator[list[str]]:
    if "catch_up" not in figures:
        return
    found = {name: one["all"] for name, one in figures["catch_up"]["medians"].items()}
    ours = found["ours"]
    rates = {name: one["events_per_s"] for name, one in found.items()}
    bars = "≥ 1.0 × NATS (JetStream, no acks), ≥ 0.6 × Redis (`XREAD COUNT 1000`)"
    yield [
        f"catch-up of {whole(ours['events'])} events, events/s", bars, *_cells(rates, whole)
    ]  # fmt: skip
    cpu = {name: one["server_cpu_us_per_event"] for name, one in found.items()}
    yield ["… server's processor time for an event, µs", "≤ 0.6 × NATS", *_cells(cpu, _us)]


def _fan_outs(figures: dict[str, Any]) -> Iterator[list[str]]:
    if "fan_out" not in figures:
        return
    for shape, found in figures["fan_out"]["medians"].items():
        cpu = {name: one["server_cpu_us_per_delivery"] for name, one in found.items()}
        bar = "≤ Redis (pub/sub, which stores nothing)" if shape == "1000 x 1000/s" else ""
        yield [f"fan-out {shape}: server's processor time for a delivery, µs", bar, *_cells(cpu, _us)]
        sent = {name: f"{ms(one['after_sent']['p50_ms'])}, {ms(one['after_sent']['p99_ms'])}"
                for name, one in found.items()}  # fmt: skip
        yield ["… delivered after it was sent: p50, p99", "", *(sent.get(name, "") for name in SYSTEMS)]


def _cells(found: dict[str, float], shown: Callable[[float], str]) -> Iterator[str]:
    """The figure of each system, with the ratio of ours to it for the other systems."""
    for name in SYSTEMS:
        if name not in found:
            yield ""
        elif name == "ours" or not found[name]:
            yield shown(found[name])
        else:
            yield f"{shown(found[name])}; ours {found['ours'] / found[name]:.2f} ×"


def _parts_of(figures: dict[str, Any]) -> Iterator[list[str]]:
    everything = None
    if "catch_up" in figures:
        found = figures["catch_up"]["medians"]["ours"]
        everything, half, one, polled, rare = (
            found[name]["events_per_s"]
            for name in ("all", "half_of_topics", "one_of_20", "one_of_20_polled", "one_of_1000")
        )
        yield [
            "catch-up, half of the topics by a glob: events/s, to catch-up of all",
            "≥ 0.6",
            _ratio(half, everything),
        ]
        yield ["… one of 20 topics: events/s, to polling `EVENTS`", "≥ 1.5", _ratio(one, polled)]
        yield ["… one of 1,000: events/s", "≥ 15,000", whole(rare)]
    if "stages" in figures:
        stages = figures["stages"]["medians"]
        if everything is not None:
            yield [
                "catch-up of all: events/s, to the same without a socket", "≥ 0.5",
                _ratio(everything, stages["without_socket_per_s"]),
            ]  # fmt: skip
        parts = ", ".join(f"{name} {us:.2f}" for name, us in stages["us_per_event"].items())
        yield ["catch-up, µs an event by stage", "", parts]


def _delays(figures: dict[str, Any]) -> Iterator[list[str]]:
    found = figures.get("fan_out", {}).get("medians", {})
    for shape, bar in (("100 x 1000/s", "p50 ≤ 1 ms, p99 ≤ 5 ms"), ("1000 x 1000/s", "p99 ≤ 50 ms")):
        if shape in found:
            after = found[shape]["ours"]["after_ack"]
            yield [f"fan-out {shape}: delivered after the ack: p50, p99", bar,
                   f"{ms(after['p50_ms'])}, {ms(after['p99_ms'])}"]  # fmt: skip


def _writers(figures: dict[str, Any]) -> Iterator[list[str]]:
    if "writer" not in figures:
        return
    load, acks = figures["writer"]["medians"]["load"], figures["writer"]["medians"]["acks"]
    yield ["load without readers: acked events/s", "", whole(load[writer.NONE]["events_per_s"])]
    for name, label, bar in (
        (writer.LIVE, "one live on all", "≥ 0.9"),
        (writer.ONE_BEHIND, "one catching up", ""),
        (writer.ALL_BEHIND, f"{writer.BEHIND} catching up", "≥ 0.75"),
    ):
        one = load[name]
        yield [f"… with {label}: to the rate without", bar,
               f"{whole(one['events_per_s'])}: {one['to_no_readers']:.2f}"]  # fmt: skip
    one = load[writer.ONE_BEHIND]
    yield ["one catching up under full load: delivered events/s, to stored", "≥ 1.2",
           f"{whole(one['delivered_per_s'])}: {one['delivered_to_stored']:.2f}"]  # fmt: skip
    without, beside = acks[writer.NONE], acks[writer.ALL_BEHIND]
    for part, bar in (("p50", "≤ 1.3"), ("p99", "≤ 1.5")):
        yield [
            f"acks at {whole(writer.RATE)}/s beside {writer.BEHIND} catching up: {part}, to that without readers", bar,
            f"{ms(beside[f'{part}_ms'])}, {ms(without[f'{part}_ms'])}: {beside[f'{part}_to_no_readers']:.2f}",
        ]  # fmt: skip


def _others(figures: dict[str, Any]) -> Iterator[list[str]]:
    if memory := figures.get("memory"):
        for name, bar in (("idle", "≤ 25 MB"), ("stalled", "≤ 600 MB")):
            yield [f"memory of {whole(memory['readers'])} {name} readers", bar, f"{memory[name]['mb']:.0f} MB"]
    if moments := figures.get("moments"):
        yield [
            f"`SINCE` among {moments['stored'] / 1e6:.1f} M events, until the reply: p50, longest", "≤ 20 ms",
            f"{ms(moments['p50_ms'])}, {ms(moments['p100_ms'])}",
        ]  # fmt: skip


def _us(number: float) -> str:
    return f"{number:.2f}"


def _ratio(one: float, other: float) -> str:
    return f"{whole(one)}, {whole(other)}: {one / other:.2f}"
