"""The file of identities: its contents, and its mistakes, each reported in one line that names the stanza."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.access import file, token
from aggregator.access.file import BadIdentities
from aggregator.access.identity import Permission
from tests.harness import ROOT

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
MAX_LINE_BYTES = 1 << 20
WEB = '[[identity]]\nname = "web"\n'


def complaint(text: str) -> str:
    """The mistake in a text; empty if there is none."""
    try:
        file.parse(text, MAX_LINE_BYTES)
    except BadIdentities as error:
        return str(error)
    return ""


def mistake(text: str) -> str:
    with pytest.raises(BadIdentities) as caught:
        file.parse(text, MAX_LINE_BYTES)
    return str(caught.value)


def test_the_example_in_the_readme() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (stanza,) = file.parse(text, MAX_LINE_BYTES)
    identity = stanza.identity

    assert identity.name == "web"
    assert identity.publish.globs == ("web.*", "audit")
    assert identity.read.globs == ("web.*",)
    assert identity.may == {Permission.MONITOR}
    assert (identity.events_per_s, identity.bytes_per_s) == (5000, 5_000_000)
    assert (identity.connections, identity.max_line_bytes) == (50, 65536)
    assert (stanza.digests, stanza.certificates, stanza.uids) == ((DIGEST,), ("DNS:web-1", "CN:web-1"), (1001,))
    assert [str(network) for network in stanza.networks] == ["10.1.0.0/24"]


def test_an_empty_file_knows_nobody() -> None:
    assert file.parse("# nobody yet\n", MAX_LINE_BYTES) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x", "not valid TOML: Expected '=' after a key in a key/value pair (at end of document)"),
        ("x = 1", "'x': unknown, expected [[identity]]"),
        ("identity = 1", "identity: expected tables, each under [[identity]]"),
        ("identity = [1]", "identity: expected tables, each under [[identity]]"),
        ("[[identity]]", "identity 1: name: expected 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        ('[[identity]]\nname = "a b"', "identity 1: name: expected 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        ("[[identity]]\nname = 7", "identity 1: name: expected 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        ('[[identity]]\nname = "anonymous"', 'identity "anonymous": name: anonymous is reserved for the server'),
        (WEB, 'identity "web": no client can have this identity without one of token_sha256, cert, address, uid'),
        (
            WEB + "uid = []",
            'identity "web": no client can have this identity without one of token_sha256, cert, address, uid',
        ),
        (
            WEB + "publsh = []",
            "identity \"web\": 'publsh': unknown, expected one of name, token_sha256, cert, address, uid, publish,"
            " read, may, events_per_s, bytes_per_s, connections, max_line_bytes",
        ),
        (WEB + 'publish = "web.*"', 'identity "web": publish: expected a list, got a string'),
        (WEB + "publish = [1]", 'identity "web": publish: expected a topic or a glob, got 1'),
        (WEB + 'publish = ["a?"]', 'identity "web": publish: ? is not allowed here: only * is special'),
        (
            WEB + 'read = [""]',
            'identity "web": read: expected 1 to 255 characters without control characters',
        ),
        (WEB + f"read = {['a'] * 65}", 'identity "web": read: at most 64 globs'),
        (WEB + 'may = ["root"]', "identity \"web\": may: expected monitor or admin, got 'root'"),
        (WEB + "may = [[]]", 'identity "web": may: expected monitor or admin, got []'),
        (WEB + "uid = 7", 'identity "web": uid: expected a list, got a number'),
        (WEB + "uid = [true]", 'identity "web": uid: expected the number of a user, got True'),
        (WEB + "uid = [-1]", 'identity "web": uid: expected the number of a user, got -1'),
        (
            WEB + "uid = [65534]",
            'identity "web": uid: 65534 is not a user: the kernel reports it for every user that it cannot map',
        ),
        (WEB + 'cert = ["web-1"]', 'identity "web": cert: expected "DNS:name" or "CN:name", got \'web-1\''),
        (WEB + "address = [1]", 'identity "web": address: expected an address or a network, got 1'),
        (WEB + 'address = ["10.1.0.1/24"]', 'identity "web": address: 10.1.0.1/24 has host bits set'),
        (WEB + 'address = ["10.0.0.1"]', 'identity "web": address: it permits publishing only, and publish is empty'),
        (
            WEB + "events_per_s = 0",
            'identity "web": events_per_s: expected a number above 0, up to 1099511627776, got 0',
        ),
        (
            WEB + "events_per_s = nan",
            'identity "web": events_per_s: expected a number above 0, up to 1099511627776, got nan',
        ),
        (
            WEB + 'bytes_per_s = "1M"',
            "identity \"web\": bytes_per_s: expected a number above 0, up to 1099511627776, got '1M'",
        ),
        (
            WEB + "connections = 1.5",
            'identity "web": connections: expected a whole number above 0, up to 1099511627776, got 1.5',
        ),
        (
            WEB + "max_line_bytes = 1048577",
            'identity "web": max_line_bytes: expected a whole number above 0, up to 1048576, got 1048577',
        ),
        (
            WEB + 'token_sha256 = ["hunter2"]',
            'identity "web": token_sha256: expected 64 hexadecimal digits, as `aggregator token` prints them',
        ),
        (WEB + "uid = [1]\n" + WEB + "uid = [2]", 'identity "web": name: another identity has this name'),
        (
            WEB + 'uid = [1]\n[[identity]]\nname = "b"\nuid = [1]',
            'identity "b": uid: 1 is given twice, first to "web"',
        ),
        (
            f'{WEB}token_sha256 = ["{DIGEST}"]\n[[identity]]\nname = "b"\ntoken_sha256 = ["{DIGEST.upper()}"]',
            'identity "b": token_sha256: the same digest is given twice, first to "web"',
        ),
        (
            '[[identity]]\nname="a"\naddress=["::/0"]\npublish=["*"]\n[[identity]]\nname="b"\naddress=["::/0"]\npublish=["*"]',
            'identity "b": address: ::/0 is given twice, first to "a"',
        ),
    ],
)
def test_a_mistake_is_one_line(text: str, why: str) -> None:
    assert mistake(text) == why


def test_a_token_in_the_place_of_its_digest_is_not_shown() -> None:
    secret = token.new()

    assert secret not in mistake(f'{WEB}token_sha256 = ["{secret}"]')
    assert secret not in mistake(f'{WEB}token_sha256 = "{secret}"')


@given(st.text())
def test_any_text_is_identities_or_one_line_of_complaint(text: str) -> None:
    assert "\n" not in complaint(text)


@given(
    st.dictionaries(
        st.sampled_from(["name", "token_sha256", "cert", "address", "uid", "publish", "may", "events_per_s", "x"]),
        st.sampled_from(
            [
                "1",
                "-1",
                "inf",
                "true",
                '""',
                '"*"',
                "[]",
                "[[]]",
                "[1]",
                '["a"]',
                "{}",
                '["CN:a"]',
                "1979-05-27",
                "1e400",
            ]
        ),
    )
)
def test_any_values_are_an_identity_or_one_line_of_complaint(table: dict[str, str]) -> None:
    text = "[[identity]]\n" + "\n".join(f"{key} = {value}" for key, value in table.items())
    assert "\n" not in complaint(text)


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o600, None),
        (0o640, None),
        (0o400, None),
        (0o660, "users other than its owner may write to it: chmod 640"),
        (0o602, "users other than its owner may write to it: chmod 640"),
        (0o644, "everybody may read it: chmod 640"),
        (0o604, "everybody may read it: chmod 640"),
    ],
)
def test_who_may_touch_the_file(tmp_path: Path, mode: int, why: str | None) -> None:
    path = tmp_path / "identities.toml"
    path.write_text(f"{WEB}uid = [1]")
    path.chmod(mode)
    if why is None:
        assert [stanza.identity.name for stanza in file.read(path, MAX_LINE_BYTES)] == ["web"]
        return
    with pytest.raises(BadIdentities) as caught:
        file.read(path, MAX_LINE_BYTES)
    assert str(caught.value) == f"{path} (--identities): {why}"


def test_what_is_no_file_of_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "bytes").write_bytes(b"name = '\xff'")
    (tmp_path / "bytes").chmod(0o600)
    found = []
    for name in ("missing", "fifo", ".", "bytes"):
        with pytest.raises(BadIdentities) as caught:
            file.read(tmp_path / name, MAX_LINE_BYTES)
        found.append(str(caught.value).replace(str(tmp_path), "FOLDER"))

    assert found == [
        "cannot read FOLDER/missing (--identities): No such file or directory",
        "cannot read FOLDER/fifo (--identities): not a regular file",
        "cannot read FOLDER (--identities): Is a directory",
        "FOLDER/bytes (--identities): not valid UTF-8 at byte 9",
    ]
