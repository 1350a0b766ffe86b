"""Addresses as text, and which of them are loopback addresses."""

from __future__ import annotations

import pytest

from aggregator import address


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("::1%lo", True), ("192.0.2.1", False), ("::", False),
     ("0.0.0.0", False), ("fe80::1%eth0", False), ("2001:db8::1", False)],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    assert address.is_loopback(host) is expected


def test_a_name_is_no_address() -> None:
    with pytest.raises(ValueError, match="localhost"):
        address.is_loopback("localhost")
