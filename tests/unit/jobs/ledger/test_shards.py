"""Shards: one winner, segments that count once, zombies that write nothing, and only the missing lines run again."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import delete, update

from jobs.db.engine import Database
from jobs.errors import ClaimLost
from jobs.ledger import ledger, outbox, shards
from jobs.ledger.shards import Tally
from jobs.ledger.states import JobState, ShardState
from jobs.ledger.tables import Outbox, Shard
from jobs.queues import Queue
from tests.support import sample_jobs
from tests.support.sample_jobs import (
    LosesAnswers,
    answer,
    claim_shard,
    lose,
    outbox_messages,
    running,
    segments,
    shard,
    state,
    tally,
)

pytestmark = pytest.mark.dialects


# ── claims ──


def test_concurrent_claims_grant_shard_to_single_worker(db: Database) -> None:
    job = running(db)
    start = threading.Barrier(8)

    def claim(number: int) -> object:
        start.wait()
        with db.write() as session:
            return shards.claim(session, job.id, 0, f"worker-{number}")

    with ThreadPoolExecutor(8) as pool:
        granted = [claim for claim in pool.map(claim, range(8)) if claim is not None]

    assert len(granted) == 1
    assert outbox_messages(db, job.id) == []


def test_many_shards_of_a_waiting_job_are_claimed_at_once(db: Database) -> None:
    """Claim shards that each end the job's waiting: no claim may wait for another that waits for it."""
    job = running(db, [1] * 6)
    with db.write() as session:
        ledger.wait_for(session, job.id, "disk")
    start = threading.Barrier(6)

    def claim(n: int) -> object:
        start.wait()
        with db.write() as session:
            return shards.claim(session, job.id, n, "worker")

    with ThreadPoolExecutor(6) as pool:
        granted = list(pool.map(claim, range(6)))

    assert None not in granted
    assert sample_jobs.job(db, job.id).waiting_for is None


def test_a_claim_says_where_the_lines_are_and_which_are_left(db: Database) -> None:
    job = running(db, [3, 10])
    first = claim_shard(db, job.id, 1)
    answer(db, first, [0, 9], bad=[9])
    lose(db, job.id, 1)

    again = claim_shard(db, job.id, 1, "second")

    assert (again.first_line, again.lines, again.offset, again.length) == (3, 10, 30, 100)
    assert again.covered == 1 << 0 | 1 << 9
    assert again.epoch > first.epoch


def test_a_shard_of_a_job_that_does_not_run_is_not_given_out(db: Database) -> None:
    job = running(db)
    with db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")

    with db.write() as session:
        assert shards.claim(session, job.id, 0, "worker") is None
        assert shards.claim(session, "nobody", 0, "worker") is None


def test_a_stale_message_of_a_running_or_done_shard_gives_nothing(db: Database) -> None:
    job = running(db, [1, 1])
    claim = claim_shard(db, job.id)

    with db.write() as session:
        while_running = shards.claim(session, job.id, 0, "other")
    answer(db, claim, [0], last=True)
    with db.write() as session:
        when_done = shards.claim(session, job.id, 0, "other")

    assert (while_running, when_done) == (None, None)


# ── segments ──


def test_a_segment_counts_its_lines_and_tokens(db: Database) -> None:
    job = running(db, [10])
    claim = claim_shard(db, job.id)

    answer(db, claim, range(6), seq=0, bad=[2])
    answer(db, claim, [6, 7], seq=1)

    row = shard(db, job.id)
    assert (row.done, row.failed, row.input_tokens, row.output_tokens) == (8, 1, 24, 16)
    assert (row.cached_tokens, row.reasoning_tokens) == (8, 8)
    kept = {segment.seq: segment for segment in segments(db, job.id)}
    assert int.from_bytes(kept[0].covered, "little") == 0b111111
    assert int.from_bytes(kept[0].good, "little") == 0b111011
    assert len(kept[0].covered) == 2
    assert kept[1].path == f"jobs/{job.id}/000000-{claim.epoch}-1.jsonl"


def test_the_last_segment_ends_the_shard_and_the_last_shard_the_run(db: Database) -> None:
    job = running(db, [2, 2])

    answer(db, claim_shard(db, job.id, 0), range(2), last=True)
    between = state(db, job.id)
    answer(db, claim_shard(db, job.id, 1), range(2), last=True)

    assert between == JobState.RUNNING
    assert state(db, job.id) == JobState.FINISHING
    row = shard(db, job.id)
    assert (row.state, row.worker_id) == (ShardState.DONE, None)
    assert row.finished_at is not None


@pytest.mark.parametrize("last", [False, True])
def test_commit_with_lost_acknowledgement_counts_once(database_url: str, last: bool) -> None:
    db = LosesAnswers(database_url)
    job = running(db, [4])
    claim = claim_shard(db, job.id)

    db.lose_next = True
    said = replace(tally(range(4)), outcomes={"stop": 4})
    db.retrying(lambda session: shards.commit(session, claim, 0, "path", 9, said, last=last))

    row = shard(db, job.id)
    assert (row.done, row.input_tokens, len(segments(db, job.id))) == (4, 12, 1)
    assert row.outcomes == ({"stop": 4} if last else None)
    db.close()


def test_a_zombie_commits_nothing_after_a_newer_claim(db: Database) -> None:
    job = running(db, [4])
    zombie = claim_shard(db, job.id, worker="zombie")
    lose(db, job.id)

    with pytest.raises(ClaimLost):
        answer(db, zombie, [0])
    heir = claim_shard(db, job.id, worker="heir")
    with pytest.raises(ClaimLost):
        answer(db, zombie, [1])
    with pytest.raises(ClaimLost):
        answer(db, zombie, range(4), last=True)

    assert (shard(db, job.id).done, list(segments(db, job.id))) == (0, [])
    answer(db, heir, range(4), last=True)
    assert shard(db, job.id).done == 4


def test_a_zombie_can_neither_end_try_nor_release_a_shard_that_is_not_its_own(db: Database) -> None:
    job = running(db, [4])
    zombie = claim_shard(db, job.id, worker="zombie")
    lose(db, job.id)
    heir = claim_shard(db, job.id, worker="heir")

    with pytest.raises(ClaimLost), db.write() as session:
        shards.finish_empty(session, zombie)
    with pytest.raises(ClaimLost), db.write() as session:
        shards.record_isolated_attempt(session, zombie, 3)
    with db.write() as session:
        shards.release(session, zombie, waiting_for="model")

    row = shard(db, job.id)
    assert (row.state, row.epoch, row.worker_id, row.isolated_line) == ("running", heir.epoch, "heir", None)
    assert sample_jobs.job(db, job.id).waiting_for is None


def test_concurrent_commit_and_lease_revocation_exclude_each_other(db: Database) -> None:
    for _ in range(10):
        job = running(db, [4])
        claim = claim_shard(db, job.id)
        start = threading.Barrier(2)

        def act(number: int, job_id: str = job.id, claim: shards.ShardClaim = claim, start=start) -> object:  # type: ignore[no-untyped-def]
            start.wait()
            try:
                if number:
                    return answer(db, claim, range(4), last=True)
                with db.write() as session:
                    return shards.revoke_lease(session, job_id, 0, claim.epoch, 0)
            except ClaimLost as fenced:
                return fenced

        with ThreadPoolExecutor(2) as pool:
            lost, committed = pool.map(act, range(2))

        assert lost == isinstance(committed, ClaimLost)
        assert shard(db, job.id).done == (0 if lost else 4)
        assert outbox_messages(db, job.id) == [("run", 0) if lost else ("finish", -1)]


def test_fully_covered_shard_finishes_without_new_segment(db: Database) -> None:
    job = running(db, [2])
    answer(db, claim_shard(db, job.id), range(2))
    lose(db, job.id)
    claim = claim_shard(db, job.id)

    for _ in range(2):  # the answer to the first was lost
        with db.write() as session:
            shards.finish_empty(session, claim)

    row = shard(db, job.id)
    assert (row.state, row.done, len(segments(db, job.id))) == ("done", 2, 1)


def test_finish_empty_on_missing_shard_raises_claim_lost(db: Database) -> None:
    job = running(db, [2])
    claim = claim_shard(db, job.id)
    with db.write() as session:
        session.execute(delete(Shard))

    with pytest.raises(ClaimLost), db.write() as session:
        shards.finish_empty(session, claim)


def test_a_tally_counts_bits() -> None:
    count = Tally(covered=0b1011, good=0b0010)

    assert (count.done, count.failed) == (3, 2)


# ── heartbeats, leases and stalls ──


def test_heartbeat_advances_valid_claims_and_returns_lost_claims(db: Database) -> None:
    job = running(db, [1, 1])
    held, gone = claim_shard(db, job.id, 0), claim_shard(db, job.id, 1)
    lose(db, job.id, 1)
    lost = [(job.id, 1, gone.epoch), ("nobody", 0, 1)]

    with db.write() as session:
        assert shards.heartbeat(session, [(job.id, 1, gone.epoch), (job.id, 0, held.epoch), ("nobody", 0, 1)]) == lost
    again = claim_shard(db, job.id, 1)
    with db.write() as session:
        assert shards.heartbeat(session, [(job.id, 1, gone.epoch), ("nobody", 0, 1)]) == lost
    with db.read() as session:
        assert sorted(shards.running(session)) == [
            (job.id, 0, held.epoch, 1, "worker"),
            (job.id, 1, again.epoch, 0, "worker"),
        ]


def test_a_shard_is_lost_only_where_its_heartbeat_stood_still(db: Database) -> None:
    job = running(db)
    claim = claim_shard(db, job.id)
    with db.write() as session:
        shards.heartbeat(session, [(job.id, 0, claim.epoch)])

    with db.write() as session:
        moved = shards.revoke_lease(session, job.id, 0, claim.epoch, 0)
        still = shards.revoke_lease(session, job.id, 0, claim.epoch, 1)
        twice = shards.revoke_lease(session, job.id, 0, claim.epoch, 1)

    assert (moved, still, twice) == (False, True, False)
    assert outbox_messages(db, job.id) == [("run", 0)]


def test_stalls_count_lost_claims_until_next_commit(db: Database) -> None:
    job = running(db, [4])
    counted = []
    for commits in (False, False, True, False):
        claim = claim_shard(db, job.id)
        if commits:
            answer(db, claim, [0])
        lose(db, job.id)
        counted.append(shard(db, job.id).stalls)

    assert counted == [1, 2, 0, 1]


def test_released_shard_counts_no_stall(db: Database) -> None:
    job = running(db, [4])
    claim = claim_shard(db, job.id)
    claim.faults[2] = [1, 0, 0]

    with db.write() as session:
        shards.release(session, claim, delay=60, waiting_for="model")

    row = shard(db, job.id)
    assert (row.state, row.stalls, row.worker_id) == ("pending", 0, None)
    assert sample_jobs.job(db, job.id).waiting_for == "model"
    assert claim_shard(db, job.id).faults == {2: [1, 0, 0]}


def test_a_job_waits_for_its_model_until_that_has_answered(db: Database) -> None:
    job = running(db, [4, 4])
    early = claim_shard(db, job.id, 1)
    answer(db, early, [0], seq=0)
    claim = claim_shard(db, job.id)
    with db.write() as session:
        shards.release(session, claim, waiting_for="model")
    late = claim_shard(db, job.id)
    said = [sample_jobs.job(db, job.id).waiting_for]
    answer(db, late, [0])
    said.append(sample_jobs.job(db, job.id).waiting_for)
    with db.write() as session:
        shards.release(session, late, waiting_for="model")
    said.append(sample_jobs.job(db, job.id).waiting_for)
    answer(db, early, [1], seq=1)
    said.append(sample_jobs.job(db, job.id).waiting_for)

    assert said == ["model", None, "model", None]


def test_isolated_attempt_is_counted_after_worker_death(db: Database) -> None:
    job = running(db, [4])
    tries = []
    for line in (1, 1, 2):
        claim = claim_shard(db, job.id)
        with db.write() as session:
            shards.record_isolated_attempt(session, claim, line)
        row = shard(db, job.id)
        tries.append((row.isolated_line, row.isolated_attempts))
        lose(db, job.id)

    assert tries == [(1, 1), (1, 2), (2, 1)]


def test_isolated_attempt_is_not_counted_after_release(db: Database) -> None:
    """Its engine had no time, or the worker was told to end: nobody died."""
    job = running(db, [4])
    tries = []
    for gives_back, line in ((True, 1), (True, 1), (False, 1), (True, 1), (True, 1), (False, 1), (True, 2)):
        claim = claim_shard(db, job.id)
        with db.write() as session:
            shards.record_isolated_attempt(session, claim, line)
        if gives_back:
            db.retrying(partial(shards.release, claim=claim))
            db.retrying(partial(shards.release, claim=claim))  # its answer was lost
        else:
            lose(db, job.id)
        row = shard(db, job.id)
        tries.append((row.isolated_line, row.isolated_attempts))

    assert tries == [(1, 0), (1, 0), (1, 1), (1, 1), (1, 1), (1, 2), (2, 0)]


def test_release_without_isolated_attempt_leaves_count_unchanged(db: Database) -> None:
    job = running(db, [4])
    claim = claim_shard(db, job.id)
    with db.write() as session:
        shards.record_isolated_attempt(session, claim, 1)
    lose(db, job.id)

    claim = claim_shard(db, job.id)
    with db.write() as session:
        shards.release(session, claim)

    row = shard(db, job.id)
    assert (row.isolated_line, row.isolated_attempts) == (1, 1)


def test_a_line_that_was_answered_is_no_longer_tried(db: Database) -> None:
    job = running(db, [4])
    claim = claim_shard(db, job.id)
    with db.write() as session:
        shards.record_isolated_attempt(session, claim, 1)

    answer(db, claim, [1])

    row = shard(db, job.id)
    assert (row.isolated_line, row.isolated_attempts) == (None, 0)


# ── stopping ──


def test_revoking_shards_of_stopping_job_enqueues_finish(db: Database) -> None:
    job = running(db, [4, 4, 4])
    claims = [claim_shard(db, job.id, n) for n in range(2)]
    answer(db, claims[0], [0, 1])
    with db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")
    before = outbox_messages(db, job.id)

    with db.write() as session:
        shards.revoke_running(session, job.id)

    with pytest.raises(ClaimLost):
        answer(db, claims[1], [0])
    assert (before, outbox_messages(db, job.id)) == ([], [("finish", -1)])
    assert shard(db, job.id).done == 2


def test_worker_commits_finished_lines_of_cancelled_job_before_release(db: Database) -> None:
    job = running(db, [4])
    claim = claim_shard(db, job.id)
    with db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")

    answer(db, claim, [0, 1])
    with db.write() as session:
        shards.release(session, claim)

    assert shard(db, job.id).done == 2
    assert outbox_messages(db, job.id) == [("finish", -1)]


def test_lost_shard_of_stopping_job_is_not_reenqueued(db: Database) -> None:
    job = running(db, [4])
    claim_shard(db, job.id)
    with db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")

    lose(db, job.id)

    assert outbox_messages(db, job.id) == [("finish", -1)]


# ── messages that are gone ──


def test_pending_shards_without_a_message_are_found_and_mended(db: Database) -> None:
    job = running(db, [1, 1, 1])
    claim_shard(db, job.id, 0)
    planned = sample_jobs.planning(db)
    with db.write() as session:
        shards.cut(session, planned, Queue.GENERATE, sample_jobs.cuts(planned.job.id, [1]))
        session.execute(delete(Outbox))

    with db.write() as session:
        assert shards.restore_messages(session) == 2
    with db.write() as session:
        assert shards.restore_messages(session) == 0

    assert outbox_messages(db, job.id) == [("run", 1), ("run", 2)]
    assert outbox_messages(db, planned.job.id) == []


def test_a_message_is_mended_into_the_queue_of_its_job(db: Database) -> None:
    job = running(db, [1])
    with db.write() as session:
        session.execute(delete(Outbox))
        session.execute(update(sample_jobs.Job).values(queue="gpu.big"))

    with db.write() as session:
        shards.restore_messages(session)
        assert list(outbox.depth(session)) == ["gpu.big"]
    assert state(db, job.id) == JobState.RUNNING


def test_cutting_nothing_is_nothing(db: Database) -> None:
    claim = sample_jobs.planning(db)

    with db.write() as session:
        shards.cut(session, claim, Queue.GENERATE, [])

    assert outbox_messages(db, claim.job.id) == []
