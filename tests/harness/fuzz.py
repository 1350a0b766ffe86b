"""The common part of fuzzing every port: how a stream is cut into reads, and how the search is started."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType


def pieces(stream: bytes, head: bytes) -> list[bytes]:
    """Cut at the distances in ``head``, over and over. An empty head, or a zero in it, means one byte."""
    cut: list[bytes] = []
    start = 0
    while start < len(stream):
        distance = (head[len(cut) % len(head)] if head else 0) or 1
        cut.append(stream[start : start + distance])
        start += distance
    return cut


def fuzz(
    seconds: int,
    folder: Path,
    check: Callable[[bytes], None],
    modules: Sequence[ModuleType],
    seeds: Iterable[bytes],
    tokens: set[bytes],
) -> None:
    """Search for this long for an input for which ``check`` raises, guided by the coverage of these modules."""
    import atheris

    names = {module.__name__ for module in modules}
    classes = {
        value for module in modules for value in vars(module).values()
        if isinstance(value, type) and value.__module__ in names
    }  # fmt: skip
    for holder in (*modules, *classes):
        for value in vars(holder).values():
            if isinstance(value, FunctionType) and value.__module__ in names:
                atheris.instrument_func(value)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(b"\x07\x40\x01\xff" + seed)
    dictionary = folder / "dictionary"
    dictionary.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in tokens if len(token) < 100)
    )
    options = [f"-max_total_time={seconds}", f"-dict={dictionary}", "-max_len=4096", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *options, "-timeout=60", "-rss_limit_mb=1024", f"{corpus}"], check)
    atheris.Fuzz()
