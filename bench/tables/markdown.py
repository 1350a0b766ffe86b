"""Tables in Markdown, and the format of figures in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def rows(head: Sequence[str], *body: Iterable[str]) -> str:
    """A table."""
    first, *others = ["| " + " | ".join(row) + " |\n" for row in (head, *body)]
    return "".join([first, "|---" * len(head), "|\n", *others])


def whole(number: float) -> str:
    """A number with commas, without a fraction."""
    return f"{number:,.0f}"


def ms(milliseconds: float) -> str:
    """Milliseconds with about three digits."""
    return f"{milliseconds:.{2 if milliseconds < 10 else 1 if milliseconds < 100 else 0}f} ms"
