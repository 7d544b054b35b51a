"""`nightmill users`: the first owner is invited here, people are listed and removed, and roles given and taken."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from cli.errors import CliError
from cli.main import app
from jobs.db.engine import Database
from jobs.errors import NightmillError
from jobs.ledger.tables import Audit
from jobs.security import accounts, keys, roles
from jobs.security.permissions import PREDEFINED
from jobs.security.tables import Account, ApiKey
from tests.support.organization import identity_of

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command on an empty database."""
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", db.url)
    monkeypatch.setenv("NIGHTMILL_PUBLIC_URL", "https://mill.example.com")
    monkeypatch.setenv("NIGHTMILL_OIDC_ISSUER", "https://login.example.com")
    monkeypatch.setenv("NIGHTMILL_OIDC_CLIENT_ID", "nightmill")

    def run(*words: str) -> list[Any]:
        done = CliRunner().invoke(app, ["users", *words, "--json"])
        if isinstance(done.exception, CliError | NightmillError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def log_in(db: Database, email: str = "ada@example.com") -> str:
    with db.write() as session:
        return accounts.log_in(session, identity_of(email), None).id


def test_invited_owner_becomes_a_user_at_the_first_login(run: Run, db: Database) -> None:
    [invited] = run("invite", "--owner", "Ada@Example.com")
    [pending] = run("list")
    user_id = log_in(db)
    [user] = run("list")

    assert (invited["email"], invited["login_url"]) == ("ada@example.com", "https://mill.example.com/login")
    assert (pending["id"], pending["status"], pending["expires"] is None) == (invited["id"], "invited", False)
    assert (user["id"], user["status"], user["name"]) == (user_id, "user", "Ada")
    with db.read() as session:
        assert roles.permissions_of(session, user_id, "") == PREDEFINED["role-org-owner"].permissions


def test_invite_names_no_login_without_an_identity_provider(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTMILL_OIDC_ISSUER")

    [invited] = run("invite", "ada@example.com")

    assert invited["login_url"] is None


def test_invite_makes_a_member_of_the_projects_it_names(run: Run, db: Database) -> None:
    with db.write() as session:
        project = keys.ensure_project(session, "reports").id
    run("invite", "ada@example.com", "--project", "reports")
    user_id = log_in(db)

    assert run("roles", "ada@example.com") == [
        {"role": "role-org-reader", "project": None},
        {"role": "role-project-member", "project": "reports"},
    ]
    with db.read() as session:
        assert "api.batch.write" in roles.permissions_of(session, user_id, project)


def test_removed_user_loses_all_keys(run: Run, db: Database) -> None:
    run("invite", "ada@example.com")
    user_id = log_in(db)
    with db.write() as session:
        key = keys.create_admin_key(session, owner_id=user_id)

    assert run("remove", "ada@example.com") == [{"id": user_id, "removed": True}]

    assert run("list") == []
    with db.read() as session:
        assert session.get_one(ApiKey, keys.id_of(key)).revoked_at is not None
        assert session.get_one(Account, user_id).deleted_at is not None


def test_removed_invite_is_not_accepted(run: Run, db: Database) -> None:
    [invited] = run("invite", "ada@example.com")

    assert run("remove", "ada@example.com") == [{"id": invited["id"], "removed": True}]
    with pytest.raises(NightmillError, match="not invited"):
        log_in(db)


def test_roles_are_given_and_taken_and_recorded(run: Run, db: Database) -> None:
    with db.write() as session:
        keys.ensure_project(session, "reports")
    run("invite", "ada@example.com")
    log_in(db)

    given = run("roles", "ada@example.com", "--give", "viewer", "--project", "reports")
    taken = run("roles", "ada@example.com", "--take", "role-org-reader", "--give", "owner")
    run("roles", "ada@example.com", "--take", "role-org-reader", "--give", "owner")

    assert given[1] == {"role": "role-project-viewer", "project": "reports"}
    assert [row["role"] for row in taken] == ["role-org-owner", "role-project-viewer"]
    with db.read() as session:
        recorded = session.scalars(select(Audit).where(Audit.action.in_(["role.assign", "role.unassign"]))).all()
    assert {row.actor for row in recorded} == {"operator"}
    assert [(row.action, row.target) for row in recorded[-3:]] == [
        ("role.assign", "role-project-viewer"),
        ("role.assign", "role-org-owner"),
        ("role.unassign", "role-org-reader"),
    ]


def test_address_of_several_users_is_refused_and_an_id_is_not(run: Run, db: Database) -> None:
    for email in ("ada@example.com", "eva@example.com"):
        run("invite", email)
        log_in(db, email)
    with db.write() as session:
        other = accounts.log_in(session, replace(identity_of("eva@example.com"), email="ada@example.com"), None).id

    for words in (["remove", "ada@example.com"], ["roles", "ada@example.com", "--give", "owner"]):
        with pytest.raises(NightmillError, match="Several users have this address"):
            run(*words)

    assert run("remove", other) == [{"id": other, "removed": True}]
    assert len(run("list")) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["invite", "ada"], "no e-mail address"),
        (["invite", "ada@"], "no e-mail address"),
        (["invite", "eva@example.com", "--project", "nothing"], "no project 'nothing'"),
        (["invite", "ada@example.com"], "has this address already"),
        (["remove", "nobody@example.com"], "no user 'nobody@example.com'"),
        (["roles", "nobody@example.com"], "no user 'nobody@example.com'"),
        (["roles", "ada@example.com", "--give", "king"], "no role 'king'"),
        (["roles", "ada@example.com", "--project", "nothing"], "no project 'nothing'"),
    ],
)
def test_wrong_words_are_refused_and_change_nothing(run: Run, db: Database, words: list[str], message: str) -> None:
    run("invite", "ada@example.com")
    log_in(db)
    before = run("list")

    with pytest.raises((CliError, NightmillError), match=message):
        run(*words)

    assert run("list") == before
