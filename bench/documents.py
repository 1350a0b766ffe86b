"""Figures in documents: ``python -m bench tables`` writes them between markers, from result files.

``<!-- table load -->`` … ``<!-- /table -->`` holds a table with its source and plot. ``<!-- figure load/medians/random/
events_per_s format=,.0f -->`` … ``<!-- /figure -->`` holds one figure: the name of a result file, and the path to the
figure in it. Both come from the machine with the newest such file, or from the one that ``machine=epyc`` names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench import command, result
from bench.tables import TABLES

ROOT: Final = Path(__file__).parent.parent
DOCUMENTS: Final = (ROOT / "README.md", ROOT / "report.md")

_OPENING: Final = re.compile(r"<!-- (?:table|figure) ")
_MARKED: Final = re.compile(r"(<!-- (table|figure) (.+?)((?: \w+=\S+)*) -->)(.*?)(<!-- /\2 -->)", re.DOTALL)


def add_command(commands: command.Commands) -> None:
    """Add ``tables`` to the commands of the bench."""
    one = commands.add_parser("tables", help="write the tables of figures in README.md and report.md")
    one.set_defaults(run=_run)
    one.add_argument(
        "documents", nargs="*", type=Path, default=DOCUMENTS, metavar="FILE",
        help="documents to write (README.md and report.md)",
    )  # fmt: skip
    one.add_argument("--check", action="store_true", help="write nothing; exit code 1 unless all is up to date")


def _run(options: argparse.Namespace) -> int:
    stale = []
    for document in options.documents:
        before = document.read_text()
        after = "".join(_written(document, before))
        if after != before:
            stale += [f"{os.path.relpath(document)}: {name}" for name in _differences(before, after)]
            if not options.check:
                document.write_text(after)
    for one in stale:
        print(
            f"{one} {'is not up to date: run python -m bench tables' if options.check else 'written'}", file=sys.stderr
        )
    return 1 if stale and options.check else 0


def _written(document: Path, text: str) -> Iterator[str]:
    """The document, piece by piece, with tables and figures between its markers."""
    end, found = 0, 0
    for match in _MARKED.finditer(text):
        opening, kind, name, settings, _, closing = match.groups()
        asked = dict(one.split("=", 1) for one in settings.split())
        try:
            content = _table(document, name, asked) if kind == "table" else _figure(name, asked)
        except (LookupError, TypeError, ValueError, OSError) as error:
            raise SystemExit(f"{document}: {kind} {name}: {error!r}") from error
        yield from (text[end : match.start()], opening, content, closing)
        end, found = match.end(), found + 1
    if found != len(_OPENING.findall(text)):
        raise SystemExit(f"{document}: a marker is not closed")
    yield text[end:]


def _table(document: Path, name: str, asked: dict[str, str]) -> str:
    path = _newest(name, asked.get("machine", "*"))
    record = json.loads(path.read_text())
    source = Path(os.path.relpath(path, document.parent.resolve())).as_posix()
    machine = record["machine"]
    about = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"commit {record['commit']}, {record['measured_at'][:10]}; [every run]({source})."
    )
    if note := record.get("note"):
        about += f" Note: {note}."
    plot = path.with_suffix(".svg")
    drawn = f"\n![{name}]({source.removesuffix('.json')}.svg)\n" if plot.exists() else ""
    return f"\n{TABLES[name](record)}\n{about}\n{drawn}"


def _figure(name: str, asked: dict[str, str]) -> str:
    file, *way = name.split("/")
    found: Any = json.loads(_newest(file, asked.get("machine", "*")).read_text())["figures"]
    for step in way:
        found = found[int(step) if isinstance(found, list) else step]
    return format(found, asked.get("format", ""))


def _newest(name: str, machine: str) -> Path:
    """The newest result file of this name, of the machine that is named or of any."""
    paths = list(result.RESULTS.glob(f"{machine}/{name}.json"))
    if not paths:
        raise LookupError(f"no such result in {result.RESULTS}")
    return max(paths, key=lambda path: json.loads(path.read_text())["measured_at"])


def _differences(before: str, after: str) -> Iterator[str]:
    """The names of the marked parts that differ."""
    for old, new in zip(_MARKED.finditer(before), _MARKED.finditer(after), strict=True):
        if old[0] != new[0]:
            yield f"{old[2]} {old[3]}"
