"""API keys: shown once, kept as a hash, revocable, refused without a look at the database when mistyped."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.ledger.tables import Audit
from jobs.security import keys
from jobs.security.tables import ApiKey, Project


def create(db: Database, project: str = "research") -> str:
    with db.write() as session:
        return keys.create_key(session, project)


def project_of(db: Database, key: str) -> str | None:
    with db.read() as session:
        row = keys.check_key(session, key)
        return session.get_one(Project, row.project_id).name if row else None


def test_a_new_key_opens_its_project(db: Database) -> None:
    key = create(db)

    assert keys.well_formed(key)
    assert project_of(db, key) == "research"


def test_a_key_is_stored_as_a_hash_and_audited_without_its_secret(db: Database) -> None:
    key = create(db)
    secret = key.split("_", 2)[2]

    with db.read() as session:
        row = session.scalars(select(ApiKey)).one()
        logged = session.scalars(select(Audit)).one()
    assert secret not in f"{vars(row)}{vars(logged)}"
    assert (logged.action, logged.target) == ("key.create", row.id)


def test_two_keys_of_a_project_are_different_and_both_open_it(db: Database) -> None:
    first, second = create(db), create(db)

    assert first != second
    assert project_of(db, first) == project_of(db, second) == "research"
    with db.read() as session:
        assert [name for _, name in keys.list_keys(session)] == ["research", "research"]
        assert len(session.scalars(select(Project)).all()) == 1


def test_a_revoked_key_opens_nothing_and_can_be_revoked_once(db: Database) -> None:
    key, other = create(db), create(db)

    with db.write() as session:
        first = keys.revoke_key(session, key.split("_")[1])
        again = keys.revoke_key(session, key.split("_")[1])
        unknown = keys.revoke_key(session, "nobody00")

    assert (first, again, unknown) == ([], None, None)
    assert project_of(db, key) is None
    assert project_of(db, other) == "research"
    with db.read() as session:
        assert [row.action for row in session.scalars(select(Audit))].count("key.revoke") == 1


def test_cascade_revokes_only_descendants_including_those_of_revoked_keys(db: Database) -> None:
    """The chain: a ─▶ b (revoked) ─▶ c ─▶ d, and e of the operator."""
    with db.write() as session:
        ids = dict[str, str]()
        for name, creator in (("a", None), ("b", "a"), ("c", "b"), ("d", "c"), ("e", None)):
            ids[name] = keys.id_of(keys.create_key(session, "research", created_by=ids.get(creator or "")))
    with db.write() as session:
        of_b = keys.revoke_key(session, ids["b"])
        elsewhere = keys.revoke_key(session, ids["a"], project_id="proj_other", cascade=True)
    with db.write() as session:
        of_a = keys.revoke_key(session, ids["a"], cascade=True)

    assert (set(of_b or ()), elsewhere, set(of_a or ())) == ({ids["c"], ids["d"]}, None, {ids["c"], ids["d"]})
    with db.read() as session:
        assert session.scalars(select(ApiKey.id).where(ApiKey.revoked_at.is_(None))).all() == [ids["e"]]


@pytest.mark.postgres
def test_a_key_that_is_created_while_its_creator_is_revoked_does_not_outlive_it(postgres: Database) -> None:
    with postgres.write() as session:
        creator = keys.id_of(keys.create_key(session, "research", manages=True))
        project = session.get_one(ApiKey, creator).project_id
    created, outcome = threading.Event(), list[list[str] | None]()

    def revoke() -> None:
        created.wait(60)
        with postgres.write() as session:
            outcome.append(keys.revoke_key(session, creator, cascade=True))

    thread = threading.Thread(target=revoke)
    thread.start()
    with postgres.write() as session:
        keys.lock_keys(session, project)
        may = keys.manages_keys(session, creator)
        key = keys.create_key(session, "research", created_by=creator)
        session.flush()
        created.set()
        thread.join(0.5)  # the revocation waits for this transaction
        waits = thread.is_alive()
    thread.join(60)

    assert (may, waits, outcome) == (True, True, [[keys.id_of(key)]])
    with postgres.read() as session:
        assert keys.check_key(session, key) is None
        assert not keys.manages_keys(session, creator)


@pytest.mark.parametrize("broken", ["", "nm", "nm_", "sk-abc", "nm_a_b_c", "nm__", "é_ü_ö_ä", "x" * 5000])
def test_malformed_key_is_refused(db: Database, broken: str) -> None:
    create(db)

    assert not keys.well_formed(broken)
    assert project_of(db, broken) is None


def test_every_single_changed_character_is_noticed_by_the_checksum(sqlite: Database) -> None:
    key = create(sqlite)
    changed = [key[:at] + ("x" if key[at] != "x" else "y") + key[at + 1 :] for at in range(len(key))]

    assert [one for one in changed if keys.well_formed(one)] == []


def test_a_wrong_secret_with_a_right_checksum_opens_nothing(sqlite: Database) -> None:
    mine, other = create(sqlite), create(sqlite, "other")
    body = "_".join([*mine.split("_")[:2], other.split("_", 2)[2].rpartition("_")[0]])
    forged = f"{body}_{keys.zlib.crc32(body.encode()):08x}"

    assert keys.well_formed(forged)
    assert project_of(sqlite, forged) is None


def test_concurrent_creation_yields_single_project(db: Database) -> None:
    start = threading.Barrier(6)

    def make(_: int) -> str:
        start.wait()
        with db.write() as session:
            return keys.ensure_project(session, "new").id

    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(make, range(6)))

    assert len(ids) == 1
