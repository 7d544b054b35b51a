"""Worlds of many seeds: each must lose nothing, repeat nothing and end. `python -m tests.simulation` plays more.

NIGHTMILL_TEST_SEEDS sets how many. `python -m tests.simulation --seed N` prints the log of a seed that fails.
"""

import os
from collections.abc import Iterator, Sequence

import pytest

from jobs.ledger.states import TERMINAL, JobState
from tests.simulation.many import database
from tests.simulation.play import WEATHERS, Game, play, weather_of
from tests.simulation.world import SimulatedDatabase, Weather

SEEDS = int(os.environ.get("NIGHTMILL_TEST_SEEDS", "0"))

#: Worlds in which something was once wrong.
REGRESSIONS = {
    5: "the clock was set back by a day, and a message enqueued before was not due until then",
}
#: Seeds in which workers die while they hold claims that nobody else ends.
HELD = [1, 2, 8, 11]


@pytest.fixture(scope="module")
def world() -> Iterator[SimulatedDatabase]:
    with database() as db:
        yield db


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_seeds_that_once_failed_pass(world: SimulatedDatabase, seed: int) -> None:
    assert play(seed, world) == []


@pytest.mark.timeout(0)
@pytest.mark.parametrize("seeds", [len(WEATHERS), pytest.param(4 * len(WEATHERS), marks=pytest.mark.soak)])
def test_no_seed_loses_or_repeats_anything(world: SimulatedDatabase, seeds: int) -> None:
    failed: dict[int, list[str]] = {}
    for seed in range(SEEDS or seeds):
        wrong = play(seed, world)
        if wrong:
            failed[seed] = wrong

    assert failed == {}, f"python -m tests.simulation --seed {next(iter(failed))}"


def test_a_seed_replays_to_the_letter(world: SimulatedDatabase) -> None:
    seed = list(WEATHERS).index("everything")
    stories = []
    for _ in range(2):
        game = Game(seed, weather_of(seed), world)
        game.play()
        stories.append((game.world.log, game.site.asked, game.seen))

    assert stories[0] == stories[1]


def test_faultless_world_sends_every_line_once_and_ends_every_job(world: SimulatedDatabase) -> None:
    ended = set()
    for seed in range(4):
        game = Game(seed, Weather(), world)

        assert game.play() == []
        assert len(game.site.asked) == len(set(game.site.asked))
        assert game.world.crashes == 0
        ended |= {states[-1] for states in game.seen.values()}

    assert JobState.SUCCEEDED in ended
    assert ended <= set(TERMINAL)


def test_poisoned_line_costs_bounded_crashes_and_spares_neighbours(world: SimulatedDatabase) -> None:
    """Two stalls switch the shard to isolation mode, two more tries convict the line."""
    game = Game(0, Weather(poison=0.0), world)
    game.poison = frozenset({(0, 0)})

    assert game.play() == []
    for job_id, states in game.seen.items():
        if states[-1] == JobState.SUCCEEDED:
            asked = [(n, line) for job, n, line in game.site.asked if job == job_id]
            assert asked.count((0, 0)) <= 4
    assert 0 < game.world.crashes <= 4 * len(game.seen)


@pytest.mark.parametrize("seeds", [(1, 4, 5), pytest.param(range(30), marks=pytest.mark.soak)])
def test_spend_limit_is_exceeded_by_a_single_shard_despite_crashes(
    world: SimulatedDatabase, seeds: Sequence[int]
) -> None:
    waited = set()
    for seed in seeds:
        game = Game(seed, Weather(crash_every=1.5, freeze_every=2.0, answer_lost=0.05, leader_every=5), world)
        game.cents = 1

        assert game.play() == []
        waited |= game.waited

    assert "spend_limit" in waited


@pytest.mark.parametrize("weather", [Weather(message_lost=0.5), Weather(crash_every=1.0)], ids=["messages", "workers"])
@pytest.mark.parametrize("seeds", [[0], pytest.param(HELD, marks=pytest.mark.soak)])
def test_lost_messages_only_delay_jobs(world: SimulatedDatabase, weather: Weather, seeds: list[int]) -> None:
    for seed in seeds:
        assert Game(seed, weather, world).play() == []
