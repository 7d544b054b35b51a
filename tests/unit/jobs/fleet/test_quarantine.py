"""Engines that die again and again: what counts, over all restarts, what they are left alone for, and how it ends."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.fleet import quarantine, workers
from jobs.fleet.models_file import EngineKind, ModelConfig, ModelSource
from jobs.fleet.quarantine import QuarantineLimits
from jobs.fleet.tables import EngineDeath, Quarantine, Worker
from jobs.ledger.tables import Audit
from tests.support import sample_jobs
from tests.support.worker_rows import worker_row

BOUNDS = QuarantineLimits(deaths=3, seconds=60.0, rest=100.0)
HERE, TINY, ENTRY = "here", "tiny", "entry-1"


class Clock:
    at = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(quarantine, "now", lambda: clock.at)
    return clock


def death(name: str, clock: Clock, **changes: Any) -> EngineDeath:
    facts: dict[str, Any] = {
        "id": name,
        "host_devices": HERE,
        "model": TINY,
        "entry": ENTRY,
        "worker_id": "w",
        "starting": False,
        "error": "out of memory",
        "suspects": [],
        "lines": [],
        "created_at": clock.at,
    }
    return EngineDeath(**(facts | changes))


def note(db: Database, name: str, clock: Clock, **changes: Any) -> bool:
    with db.write() as session:
        return quarantine.note(session, death(name, clock, **changes), BOUNDS)


def left(db: Database) -> list[Quarantine]:
    with db.read() as session:
        return list(quarantine.all_quarantines(session))


def within(db: Database, work: Callable[[Session], Any]) -> Any:
    with db.write() as session:
        return work(session)


def counted(db: Database) -> list[str]:
    with db.read() as session:
        return sorted(session.scalars(select(EngineDeath.id)))


def audited(db: Database) -> list[tuple[str, str]]:
    with db.read() as session:
        query = select(Audit.action, Audit.actor).where(Audit.action.in_(("model.quarantine", "model.release")))
        return [(action, actor) for action, actor in session.execute(query.order_by(Audit.id))]


def quarantined(db: Database, clock: Clock, **changes: Any) -> None:
    for n in range(BOUNDS.deaths):
        note(db, f"d{n}-{clock.at}", clock, **changes)


def test_so_many_deaths_in_so_many_seconds_are_enough_and_others_are_not(db: Database, clock: Clock) -> None:
    said = []
    for at in (1000.0, 1050.0, 1100.0, 1105.0):
        clock.at = at
        said.append(note(db, f"d{at}", clock))

    assert said == [False, False, False, True]
    (row,) = left(db)
    assert (row.host_devices, row.model, row.deaths, row.trial, row.until) == (HERE, TINY, 3, None, 1105.0 + 100)
    assert counted(db) == []
    assert audited(db) == [("model.quarantine", "engine")]


def test_repeated_death_report_counts_once(db: Database, clock: Clock) -> None:
    assert [note(db, "same", clock) for _ in range(5)] == [False] * 5
    assert counted(db) == ["same"]


def test_an_engine_that_takes_long_to_fail_counts_until_it_has_come_up(db: Database, clock: Clock) -> None:
    for n in range(2):
        note(db, f"slow{n}", clock, starting=True)
        clock.at += 10_000
    within(db, lambda session: quarantine.record_start(session, HERE, TINY))
    assert counted(db) == []

    said = []
    for n in range(3):
        said.append(note(db, f"again{n}", clock, starting=True))
        clock.at += 10_000

    assert said == [False, False, True]


@pytest.mark.parametrize("other", [{"host_devices": "elsewhere"}, {"model": "large"}, {"entry": "entry-2"}])
def test_deaths_of_other_devices_models_or_entries_count_separately(
    db: Database, clock: Clock, other: dict[str, str]
) -> None:
    said = [note(db, "a", clock), note(db, "b", clock, **other), note(db, "c", clock), note(db, "d", clock)]

    assert said == [False, False, False, True]


def test_description_states_last_error_top_suspects_and_log_tail(db: Database, clock: Clock) -> None:
    note(db, "a", clock, suspects=["poison", "x", "y"], lines=["first"])
    note(db, "b", clock, suspects=["z", "poison"], lines=["second"])
    note(db, "c", clock, suspects=["poison"], error="no device", lines=[])

    (row,) = left(db)
    told = quarantine.describe(row)

    assert told[0].endswith("at here: its engine died 3 times, last of: no device")
    assert told[1].startswith("in flight then: poison (3 times), x (1 times)")
    assert told[2:] == ["its log: second"]


def test_trial_starts_after_rest_for_single_worker_and_extends_quarantine(db: Database, clock: Clock) -> None:
    quarantined(db, clock)

    def begin(worker: str) -> bool:
        return within(db, lambda session: quarantine.begin_trial(session, HERE, TINY, worker, BOUNDS))

    early = begin("w1")
    clock.at += 100
    tries = [begin("w1"), begin("w1"), begin("w2")]

    assert (early, tries) == (False, [True, True, False])
    (row,) = left(db)
    assert (row.trial, row.tries, row.until) == ("w1", 1, clock.at + 200)


def test_single_death_on_trial_renews_quarantine(db: Database, clock: Clock) -> None:
    quarantined(db, clock)
    clock.at += 100
    within(db, lambda session: quarantine.begin_trial(session, HERE, TINY, "w1", BOUNDS))

    assert note(db, "again", clock, error="still no device")

    (row,) = left(db)
    assert (row.trial, row.until, row.error, row.deaths) == (None, clock.at + 200, "still no device", 4)


def test_rests_grow_up_to_a_day() -> None:
    assert [BOUNDS.pause(tries) for tries in (0, 1, 2, 9, 99)] == [100, 200, 400, 51_200, 86_400]


def test_successful_trial_is_ended_only_by_its_worker(db: Database, clock: Clock) -> None:
    quarantined(db, clock)
    clock.at += 100
    within(db, lambda session: quarantine.begin_trial(session, HERE, TINY, "w1", BOUNDS))

    within(db, lambda session: quarantine.end_trial(session, HERE, TINY, "w2"))
    assert len(left(db)) == 1
    within(db, lambda session: quarantine.end_trial(session, HERE, TINY, "w1"))

    assert left(db) == []
    assert audited(db)[-1] == ("model.release", "engine")


def test_leaving_worker_passes_trial_to_next_worker(db: Database, clock: Clock) -> None:
    quarantined(db, clock)
    clock.at += 100
    within(db, lambda session: quarantine.begin_trial(session, HERE, TINY, "w1", BOUNDS))

    within(db, lambda session: quarantine.leave(session, "w1"))

    assert within(db, lambda session: quarantine.begin_trial(session, HERE, TINY, "w2", BOUNDS))


def test_the_operator_frees_it_everywhere_with_a_clean_record(db: Database, clock: Clock) -> None:
    quarantined(db, clock)
    for n in range(3):
        note(db, f"there{n}", clock, host_devices="there")
    note(db, "third", clock, host_devices="third")

    assert within(db, lambda session: quarantine.release(session, TINY, "operator")) == 2
    assert (left(db), counted(db)) == ([], [])
    assert audited(db)[-2:] == [("model.release", "operator")] * 2


def test_another_entry_of_the_models_file_is_another_engine(db: Database, clock: Clock) -> None:
    quarantined(db, clock)

    def held(entry: str | None, known: tuple[str, ...]) -> list[str]:
        entries = {TINY: entry} if entry else {}
        return within(db, lambda session: list(quarantine.quarantines_at(session, HERE, entries, known)))  # type: ignore[no-any-return]

    assert held(ENTRY, (TINY,)) == [TINY]
    assert held(None, (TINY,)) == [], "it is of another queue"
    assert len(left(db)) == 1

    assert held("entry-2", (TINY,)) == []
    assert (left(db), audited(db)[-1]) == ([], ("model.release", "models file"))


def test_model_removed_from_models_file_leaves_quarantine(db: Database, clock: Clock) -> None:
    quarantined(db, clock)

    within(db, lambda session: quarantine.quarantines_at(session, HERE, {}, ("large",)))

    assert left(db) == []


def test_entry_identifies_source_engine_and_engine_arguments() -> None:
    def entry(**changes: Any) -> str:
        facts = {"name": TINY, "source": ModelSource(packaged="x"), "engine": EngineKind.VLLM, "engine_args": {"a": 1}}
        return quarantine.entry_of(ModelConfig(**(facts | changes)))

    same = [entry(), entry(aliases=("small",)), entry(max_model_len=5)]
    others = [entry(engine_args={"a": 2}), entry(source=ModelSource(packaged="y")), entry(engine=EngineKind.EMBED)]

    assert len(set(same)) == 1
    assert len({*same, *others}) == 4


def worker(db: Database, **changes: Any) -> Worker:
    engines = {TINY: {"entry": ENTRY, "up": True}, "large": {"entry": "entry-l", "up": True}}
    row = worker_row(
        **{"id": "w-1", "host": "here", "models": ["tiny"], "host_devices": HERE, "engines": engines} | changes
    )
    within(db, lambda session: workers.register(session, row))
    return row


def blamed(db: Database) -> list[tuple[str, bool, list[str]]]:
    with db.read() as session:
        rows = session.scalars(select(EngineDeath).order_by(EngineDeath.model))
        return [(row.model, row.starting, row.suspects) for row in rows]


def handle_worker_death(db: Database, clock: Clock, **changes: Any) -> None:
    row = worker(db, **changes)
    within(
        db,
        lambda session: quarantine.handle_worker_death(
            session, session.get_one(Worker, row.id), {"small": TINY}, BOUNDS
        ),
    )


@pytest.mark.parametrize("name", [TINY, "small"])
def test_worker_death_is_attributed_to_model_of_claimed_shard(db: Database, clock: Clock, name: str) -> None:
    job = sample_jobs.running(db, [2, 2], model=name)
    sample_jobs.claim_shard(db, job.id, 1, "w-1")

    handle_worker_death(db, clock)

    assert blamed(db) == [(TINY, False, [f"{job.id} shard 1"])]


def test_worker_death_is_attributed_to_loading_engine(db: Database, clock: Clock) -> None:
    job = sample_jobs.running(db)
    sample_jobs.claim_shard(db, job.id, 0, "w-1")

    handle_worker_death(
        db, clock, engines={TINY: {"entry": ENTRY, "up": True}, "large": {"entry": "entry-l", "up": False}}
    )

    assert blamed(db) == [("large", True, [])]


def test_or_by_any_that_it_had(db: Database, clock: Clock) -> None:
    handle_worker_death(db, clock)

    assert [model for model, *_ in blamed(db)] == ["large", TINY]


def test_repeated_handling_of_worker_death_counts_once(db: Database, clock: Clock) -> None:
    handle_worker_death(db, clock)
    with db.read() as session:
        assert session.get_one(Worker, "w-1").engines == {}

    handle_worker_death(db, clock)  # as by another that has read its row before

    assert len(blamed(db)) == 2


def test_stopped_worker_blames_no_engine(db: Database, clock: Clock) -> None:
    row = worker(db)
    within(db, lambda session: quarantine.excuse(session, row.id))

    within(db, lambda session: quarantine.handle_worker_death(session, session.get_one(Worker, row.id), {}, BOUNDS))

    assert blamed(db) == []


def test_deaths_of_worker_found_alive_are_withdrawn(db: Database, clock: Clock) -> None:
    handle_worker_death(db, clock)
    handle_worker_death(db, clock, id="w-10")

    within(db, lambda session: quarantine.lives(session, "w-1"))

    with db.read() as session:
        assert set(session.scalars(select(EngineDeath.worker_id))) == {"w-10"}


def test_repeated_worker_deaths_quarantine_their_engine(db: Database, clock: Clock) -> None:
    for n in range(3):
        handle_worker_death(db, clock, id=f"w-{n}", engines={TINY: {"entry": ENTRY, "up": True}})

    within(db, lambda session: quarantine.add_log_lines(session, HERE, [TINY], ["Killed"]))

    (row,) = left(db)
    assert (row.model, row.deaths, row.lines) == (TINY, 3, ["Killed"])


def test_words_that_are_there_are_not_written_over(db: Database, clock: Clock) -> None:
    note(db, "a", clock, lines=["its own"])
    note(db, "b", clock)

    within(db, lambda session: quarantine.add_log_lines(session, HERE, [TINY], ["later"]))

    with db.read() as session:
        assert [row.lines for row in session.scalars(select(EngineDeath).order_by(EngineDeath.id))] == [
            ["its own"],
            ["later"],
        ]


def test_quarantines_and_deaths_are_deleted_after_week_without_activity(db: Database, clock: Clock) -> None:
    quarantined(db, clock)
    note(db, "one", clock, host_devices="there", starting=True)
    clock.at += 7 * 86_400
    within(db, quarantine.forget)
    assert (len(left(db)), counted(db)) == (1, ["one"])

    clock.at += 101
    within(db, quarantine.forget)

    assert (left(db), counted(db)) == ([], [])
