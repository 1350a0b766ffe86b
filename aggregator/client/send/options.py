"""What to send, where, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aggregator.client.connect import Server


@dataclass(frozen=True, slots=True)
class SendOptions:
    """The options of `aggregator send`; its --help says what each means."""

    files: list[str]
    server: Server
    topic: str | None = None
    source: str | None = None
    takes_stamps: bool = False
    json: bool = False
    id_field: str | None = None
    time_field: str | None = None
    topic_field: str | None = None
    by_content: bool = False
    as_text: bool = False
    follow: bool = False
    state: Path | None = None
    rejects: Path | None = None
    quiet: bool = False
    give_up_after_s: float | None = None
