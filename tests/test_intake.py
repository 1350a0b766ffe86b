"""The queue between the connections and the consumer: how full it is, which connections wait for room, how it ends."""

from __future__ import annotations

from aggregator.event import Event, Events
from aggregator.server.intake import Intake, Outcome, Submission


def ignore(outcome: Outcome) -> None:
    pass


def submission(count: int = 1, size_bytes: int = 1) -> Submission:
    """This many events of this size each."""
    return Submission(Events.of(Event.of("t", "e", b"x" * size_bytes) for _ in range(count)), ignore)


async def take(intake: Intake) -> None:
    taken = await intake.get()
    assert taken
    intake.took([taken])


async def test_those_who_wait_are_woken_at_half_and_only_while_there_is_room() -> None:
    intake = Intake(max_events=10, max_bytes=1000)
    woken: list[int] = []

    def wake(number: int) -> None:
        woken.append(number)
        intake.put(submission(10))

    intake.put(submission(6))
    intake.put(submission(6))
    assert intake.full
    for number in range(3):
        intake.when_room(lambda number=number: wake(number))  # type: ignore[misc]

    await take(intake)  # 6 left: above the low-water mark
    assert woken == []
    await take(intake)  # 0 left: the first callback fills it again
    assert woken == [0]
    await take(intake)
    assert woken == [0, 1]


async def test_it_is_full_by_events_or_by_bytes() -> None:
    by_events, by_bytes = Intake(max_events=2, max_bytes=1000), Intake(max_events=1000, max_bytes=100)
    by_events.put(submission())
    by_bytes.put(submission(size_bytes=99))
    assert not by_events.full
    assert not by_bytes.full
    by_events.put(submission())
    by_bytes.put(submission())

    assert by_events.full
    assert by_bytes.full


async def test_a_submission_counts_until_it_is_on_its_way_to_the_disk() -> None:
    intake = Intake(max_events=10, max_bytes=1000)
    intake.put(submission(3, size_bytes=7))
    taken = await intake.get()
    assert taken
    assert (intake.waiting_events, intake.waiting_bytes) == (3, 21)
    intake.took([taken])

    assert (intake.waiting_events, intake.waiting_bytes) == (0, 0)
    assert {metric.name: metric.value for metric in intake.metrics()} == {
        "queue_events": 0, "queue_limit": 10, "queue_bytes": 0,
    }  # fmt: skip


async def test_closed_it_gives_out_what_came_after_its_end_too() -> None:
    intake = Intake(max_events=10, max_bytes=100)
    first, late = submission(), submission()
    intake.put(first)
    intake.close()
    intake.put(late)

    assert [await intake.get() for _ in range(4)] == [first, late, None, None]


async def test_diverted_it_gives_up_all_that_it_has_and_all_that_is_put_later() -> None:
    intake = Intake(max_events=10, max_bytes=100)
    first, second, late = submission(), submission(), submission()
    intake.put(first)
    intake.put(second)
    intake.close()
    diverted: list[Submission] = []

    assert intake.divert(diverted.append) == [first, second]
    intake.put(late)
    assert diverted == [late]
    intake.took([first, second])
    assert (intake.waiting_events, intake.waiting_bytes) == (0, 0)
