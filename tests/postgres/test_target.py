"""The URL of a database: its hosts are tried in turn, and its password is never shown."""

from __future__ import annotations

import pytest

from aggregator.storage.engine import StorageUnusable
from aggregator.storage.postgres.target import Target

URL = "postgresql://ada:se%20cret@one,two:5433,three/logs?sslmode=disable"


def test_each_turn_begins_with_the_next_host() -> None:
    target = Target("postgresql://ada@one:1,two:2,three:3/logs")
    turns = [(target.parameters(turn)["host"], target.parameters(turn)["port"]) for turn in range(4)]

    assert turns[0] == ("one,two,three", "1,2,3")
    assert turns[1] == ("two,three,one", "2,3,1")
    assert turns[2] == ("three,one,two", "3,1,2")
    assert turns[3] == turns[0]


def test_one_host_is_the_only_one() -> None:
    assert Target("postgresql://one/logs").parameters(3)["host"] == "one"


def test_what_the_url_says_is_kept() -> None:
    parameters = Target("postgresql://one/logs?connect_timeout=9&target_session_attrs=any").parameters(0)

    assert (parameters["connect_timeout"], parameters["target_session_attrs"]) == ("9", "any")
    assert Target("postgresql://one/logs").parameters(0)["target_session_attrs"] == "read-write"


def test_user_password_and_options_are_not_shown() -> None:
    target = Target(URL)

    assert target.location == "postgresql://one,two:5433,three/logs"
    assert target.parameters(0)["password"] == "se cret"


@pytest.mark.parametrize(
    "url", ["postgresql://ada:secret@[::1/logs", "postgresql://ada:secret@one:5432/logs?nonsense=1", "postgresql://%"]
)
def test_what_is_no_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(StorageUnusable) as refused:
        Target(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["postgresql://one:1,two:2/logs?host=one,two,three", "postgresql://one,two/logs?hostaddr=127.0.0.1"]
)
def test_lists_of_different_lengths_are_refused(url: str) -> None:
    with pytest.raises(StorageUnusable, match="different lengths"):
        Target(url)
