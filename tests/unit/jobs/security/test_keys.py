"""API keys: shown once, kept as a hash, revocable, refused without a look at the database when mistyped."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import InvalidRequest, Unauthenticated
from jobs.ledger.tables import Audit
from jobs.security import keys
from jobs.security.permissions import of_project_role
from jobs.security.tables import NO_PROJECT, Account, ApiKey, Project, ServiceAccount


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
@pytest.mark.parametrize("project", [NO_PROJECT, "research"])
def test_a_key_that_is_created_while_its_creator_is_revoked_does_not_outlive_it(
    postgres: Database, project: str
) -> None:
    with postgres.write() as session:
        project_id = keys.ensure_project(session, project).id if project else NO_PROJECT
        creator = keys.id_of(keys.add_key(session, project_id, manages=True))
    created, outcome = threading.Event(), list[list[str] | None]()

    def revoke() -> None:
        created.wait(60)
        with postgres.write() as session:
            outcome.append(keys.revoke_key(session, creator, cascade=True))

    thread = threading.Thread(target=revoke)
    thread.start()
    with postgres.write() as session:
        manager = keys.lock_key(session, creator)
        key = keys.add_key(session, project_id, created_by=creator)
        session.flush()
        created.set()
        thread.join(0.5)  # the revocation waits for this transaction
        waits = thread.is_alive()
    thread.join(60)

    assert (manager.is_live, waits, outcome) == (True, True, [[keys.id_of(key)]])
    with postgres.read() as session:
        assert keys.check_key(session, key) is None
        revoked = keys.find_key(session, creator)
        assert revoked is not None
        assert revoked.end == "key_revoked"


@pytest.mark.parametrize(("end", "message"), keys.ENDS.items())
def test_key_that_has_ended_creates_no_other(db: Database, end: str, message: str) -> None:
    key_id = keys.id_of(create(db))
    with db.write() as session:
        row = session.get_one(ApiKey, key_id)
        if end == "key_expired":
            row.expires_at = now() - 1
        elif end == "project_archived":
            session.get_one(Project, row.project_id).archived_at = now()
        else:
            keys.revoke_key(session, key_id)

    with pytest.raises(Unauthenticated) as refusal, db.write() as session:
        keys.lock_key(session, key_id)
    assert refusal.value.message == message


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


@pytest.mark.parametrize("end", keys.ENDS)
def test_key_ends_by_revocation_expiry_its_owner_or_its_project(db: Database, end: str) -> None:
    key, other = create(db), create(db, "other")
    with db.write() as session:
        row = session.get_one(ApiKey, keys.id_of(key))
        if end == "key_expired":
            row.expires_at = now() - 1
        elif end == "project_archived":
            session.get_one(Project, row.project_id).archived_at = now()
        else:
            session.get_one(ServiceAccount, row.owner_id).deleted_at = now()

    with db.read() as session:
        found, live = keys.authenticate(session, key), keys.authenticate(session, other)
        assert found is not None
        assert live is not None
        assert (found.end, live.end, keys.check_key(session, key)) == (end, None, None)


@pytest.mark.parametrize(
    ("role", "scopes", "permitted", "refused"),
    [
        ("member", [], "api.files.write", "api.organization.projects.write"),
        ("owner", [], "api.organization.projects.write", "api.management.read"),
        ("owner", ["api.all.read"], "api.organization.projects.read", "api.files.write"),
        ("member", ["api.all.read"], "api.files.read", "api.organization.projects.read"),
        ("none", ["api.files.read"], None, "api.files.read"),
    ],
)
def test_key_permits_its_scopes_within_the_role_of_its_owner(
    db: Database, role: str, scopes: list[str], permitted: str | None, refused: str
) -> None:
    with db.write() as session:
        key_id = keys.id_of(keys.create_key(session, "research", scopes=scopes))
        session.get_one(ServiceAccount, session.get_one(ApiKey, key_id).owner_id).role = role

    with db.read() as session:
        found = keys.find_key(session, key_id)
    assert found is not None
    assert permitted is None or permitted in found.permissions
    assert refused not in found.permissions


def test_key_of_an_earlier_version_has_the_permissions_of_a_member(db: Database) -> None:
    key = create(db)
    with db.write() as session:
        row = session.get_one(ApiKey, keys.id_of(key))
        row.owner_id = row.name = row.hint = None

    with db.read() as session:
        found = keys.authenticate(session, key)
    assert found is not None
    assert (found.end, found.permissions) == (None, of_project_role("member"))
    assert keys.redact(found.row) == f"nm_{found.row.id}..."


def test_new_key_has_name_hint_and_scopes_in_its_row_and_the_audit_log(db: Database) -> None:
    with db.write() as session:
        key = keys.create_key(session, "research", name="ci", scopes=["api.files.read"], expires_at=now() + 60)

    with db.read() as session:
        row = session.get_one(ApiKey, keys.id_of(key))
        logged = session.scalars(select(Audit)).one()
    assert (row.name, row.hint, row.scopes) == ("ci", key[-4:], ["api.files.read"])
    assert logged.details == {"scopes": ["api.files.read"], "expires_at": row.expires_at}


def test_keys_of_people_leave_room_for_those_of_service_accounts(db: Database) -> None:
    with db.write() as session:
        session.add(Account(id="user_1", email="ann@example.com", created_at=now()))
        project = keys.ensure_project(session, "research").id
        keys.add_key(session, project, owner_id="user_1")
        keys.add_key(session, project, limit=1)
        with pytest.raises(InvalidRequest) as refusal:
            keys.add_key(session, project, limit=1)

    assert refusal.value.code == "too_many_api_keys"


def test_unknown_scope_creates_no_key(db: Database) -> None:
    with pytest.raises(InvalidRequest), db.write() as session:
        keys.create_key(session, "research", scopes=["api.files.fly"])

    with db.read() as session:
        assert keys.list_keys(session) == []
