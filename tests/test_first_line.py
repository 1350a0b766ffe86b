"""A client's first line: whether it says who the client is. However it is cut, the bytes after it are lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.server.first_line import FIRST_LINE_BYTES, FirstLine, Said

TOKEN = "agg_" + 4 * "abcdefghijklm"  # fixed, because it is part of the names of tests
BOM = b"\xef\xbb\xbf"


def hear(data: bytes, *, text: bool = False, pieces: int = 0) -> Said:
    """The result for this stream, fed in pieces of this many bytes."""
    first_line = FirstLine(text)
    size = pieces or max(1, len(data))
    for start in range(0, len(data), size):
        if said := first_line.feed(data[start : start + size]):
            return Said(said.rest + data[start + size :], said.token, said.lines)
    return first_line.finish()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"AUTH x\n{}\n", Said(b"{}\n", "x", 1)),
        (b"AUTH x\r\n", Said(b"", "x", 1)),
        (b"auth \t x \t\n", Said(b"", "x", 1)),
        (b"\n \r\n\tAuth x\nrest", Said(b"rest", "x", 3)),
        (BOM + b"AUTH x\n", Said(b"", "x", 1)),
        (b"AUTH x y\n", Said(b"", "x y", 1)),
        (b"AUTH\n", Said(b"", "", 1)),
        (b"AUTH", Said(b"", "", 1)),
        (b"AUTH x", Said(b"", "x", 1)),
        (b"AUTH \xff\n", Said(b"", "\ufffd", 1)),
        (b"AUTH " + b"x" * 5 + b"\nAUTH y\n", Said(b"AUTH y\n", "xxxxx", 1)),
        (b"", Said(b"")),
        (b"\n\n", Said(b"\n\n")),
        (b"AUT", Said(b"AUT")),
        (b"AUTHOR x\n", Said(b"AUTHOR x\n")),
        (b"PING\nAUTH x\n", Said(b"PING\nAUTH x\n")),
        (b'{"a":1}', Said(b'{"a":1}')),
        (b"\r\n\r\n\0\r\nQUIT\n", Said(b"\r\n\r\n\0\r\nQUIT\n")),
        (b"\n" * 3000 + b"AUTH x\n", Said(b"\n" * 3000 + b"AUTH x\n")),
    ],
)
@pytest.mark.parametrize("pieces", [0, 1, 2, 7])
def test_what_first_lines_say(data: bytes, said: Said, pieces: int) -> None:
    assert hear(data, pieces=pieces) == said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (f"AUTH {TOKEN}\ntext\n".encode(), Said(b"text\n", TOKEN, 1)),
        (f"\nAUTH {TOKEN}\r\n".encode(), Said(b"", TOKEN, 2)),
        (f"AUTH {TOKEN}".encode(), Said(b"", TOKEN, 1)),
        (b"AUTH failed for root\n", Said(b"AUTH failed for root\n")),
        (b"AUTH\n", Said(b"AUTH\n")),
        (f"auth {TOKEN}\n".encode(), Said(b"", TOKEN, 1)),
        (f" \tAuth\t {TOKEN} \t\r\n".encode(), Said(b"", TOKEN, 1)),
        (BOM + f"AUTH {TOKEN} ".encode(), Said(b"", TOKEN, 1)),
        (f"AUTH {TOKEN} x\n".encode(), Said(b"", f"{TOKEN} x", 1)),
        (f"AUTH {TOKEN.upper()}\n".encode(), Said(f"AUTH {TOKEN.upper()}\n".encode())),
        (f"AUTHOR {TOKEN}\n".encode(), Said(f"AUTHOR {TOKEN}\n".encode())),
        (b"AUTH " + b"x" * 3000, Said(b"AUTH " + b"x" * 3000)),
    ],
)
@pytest.mark.parametrize("pieces", [0, 1, 7])
def test_in_a_stream_of_text_only_a_token_is_an_auth(data: bytes, said: Said, pieces: int) -> None:
    assert hear(data, text=True, pieces=pieces) == said


@pytest.mark.parametrize("text", [False, True])
@given(data=st.lists(st.sampled_from([b"AUTH", b" ", b"\n", b"\r", b"x", b"{", BOM, TOKEN.encode()])).map(b"".join))
def test_pieces_make_no_difference_and_no_byte_is_lost(text: bool, data: bytes) -> None:
    whole = hear(data, text=text)

    assert hear(data, text=text, pieces=1) == whole
    assert data.endswith(whole.rest)
    if whole.token is None:
        assert whole.rest == data
    else:
        assert data[: len(data) - len(whole.rest)].count(b"\n") in (whole.lines, whole.lines - 1)


@pytest.mark.parametrize("start", [b"", b"AUTH ", b"\n", b"  AUTH  "])
def test_no_more_than_a_kibibyte_waits_for_the_end_of_a_line(start: bytes) -> None:
    first_line = FirstLine(text=False)
    fed = 0
    for byte in start + b" " * (2 * FIRST_LINE_BYTES):
        fed += 1
        if first_line.feed(bytes([byte])):
            break

    assert fed == FIRST_LINE_BYTES + 1
