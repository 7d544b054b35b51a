"""Lanes: who may be sent to, on a clock that the test holds."""

from jobs.webhooks.claims import DeliveryClaim
from workers.webhooks.loop import IN_FLIGHT, PER_LANE, SLOW_AFTER, Lanes


def claims(lane: str, count: int) -> list[DeliveryClaim]:
    return [
        DeliveryClaim(
            id=f"{lane}-{n}",
            epoch=1,
            worker_id="io-1",
            endpoint_id=lane,
            lane=lane,
            url="https://example.com/",
            secrets=(),
            body=b"{}",
            attempt=1,
            sequence=1,
        )
        for n in range(count)
    ]


def test_lane_sends_two_at_once_and_starts_next_after_completion() -> None:
    lanes = Lanes()
    lanes.add(claims("a", 3))

    first = lanes.start(0.0)
    assert (len(first), lanes.start(0.0)) == (PER_LANE, [])

    lanes.end_flight(first[0], 0.1)
    assert [claim.id for claim in lanes.start(0.1)] == ["a-2"]


def test_all_lanes_together_have_a_limit() -> None:
    lanes = Lanes()
    for n in range(IN_FLIGHT):
        lanes.add(claims(f"lane-{n}", 2))

    started = lanes.start(0.0)

    assert (len(started), lanes.room()) == (IN_FLIGHT, 0)
    assert len({claim.lane for claim in started}) == IN_FLIGHT, "each lane before any second time"


def test_hanging_lane_becomes_slow_and_releases_waiting_claims() -> None:
    lanes = Lanes()
    lanes.add([*claims("hang", 5), *claims("good", 5)])
    lanes.start(0.0)
    lanes.watch(SLOW_AFTER)
    assert lanes.surrender() == []

    for claim in claims("good", 2):
        lanes.end_flight(claim, 0.1)
    lanes.watch(SLOW_AFTER + 0.1)

    assert [claim.id for claim in lanes.surrender()] == ["hang-2", "hang-3", "hang-4"]
    assert lanes.allowances() == {"hang": 1}


def test_slow_lane_sends_single_delivery_and_recovers_after_fast_answer() -> None:
    lanes = Lanes()
    lanes.add(claims("a", 1))
    (slow,) = lanes.start(0.0)
    lanes.end_flight(slow, 15.0)
    lanes.add(claims("a", 3))

    (one,) = lanes.start(20.0)
    lanes.end_flight(one, 20.1)

    assert lanes.allowances() == {}
    assert len(lanes.start(20.1)) == PER_LANE


def test_slow_lanes_together_leave_half_of_the_places() -> None:
    lanes = Lanes()
    for n in range(IN_FLIGHT // 2):
        lanes.add(claims(f"hang-{n}", 1))
    lanes.start(0.0)

    lanes.watch(2.0)

    assert set(lanes.allowances().values()) == {0}
    assert lanes.room() == IN_FLIGHT // 2


def test_closed_lane_releases_waiting_claims() -> None:
    lanes = Lanes()
    lanes.add(claims("a", 3))
    lanes.start(0.0)

    assert [claim.id for claim in lanes.surrender({"a"})] == ["a-2"]


def test_idle_lanes_are_forgotten_slow_ones_later() -> None:
    lanes = Lanes()
    lanes.add([*claims("quick", 1), *claims("slow", 1)])
    for claim in lanes.start(0.0):
        lanes.end_flight(claim, 0.1 if claim.lane == "quick" else 9.0)

    lanes.watch(10.0)
    assert lanes.allowances() == {"slow": 1}

    lanes.watch(1000.0)
    assert lanes.allowances() == {}
