"""Tables in Markdown, and how figures are written in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def rows(head: Sequence[str], *body: Iterable[str]) -> str:
    """A table."""
    first, *others = ["| " + " | ".join(row) + " |\n" for row in (head, *body)]
    return "".join([first, "|---" * len(head), "|\n", *others])


def whole(number: float) -> str:
    """With commas, without a fraction."""
    return f"{number:,.0f}"


def ms(milliseconds: float) -> str:
    """With about three digits."""
    return f"{milliseconds:.{2 if milliseconds < 10 else 1 if milliseconds < 100 else 0}f} ms"
