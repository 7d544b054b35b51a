"""Accounts and invites: one invite of an address, and addresses that change at the identity provider."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import InvalidRequest
from jobs.ledger.tables import Audit
from jobs.security import accounts
from jobs.security.tables import Invite
from tests.support.organization import identity_of

ADA = "ada@example.com"


def invite(session: Session, email: str = ADA) -> str:
    return accounts.invite(session, email, "reader", (), actor="operator", request_id=None).id


def add(db: Database, email: str) -> str:
    with db.write() as session:
        invite(session, email)
        return accounts.log_in(session, identity_of(email), None).id


@pytest.mark.dialects
def test_later_of_two_invites_of_an_address_is_refused(db: Database) -> None:
    def invite_late() -> None:
        with db.write() as session:
            invite(session)

    with ThreadPoolExecutor(1) as pool:
        with db.write() as session:
            first = invite(session)
            late = pool.submit(invite_late)
            with pytest.raises(TimeoutError):
                late.result(0.3)
        with pytest.raises(InvalidRequest) as refused:
            late.result(10)

    assert refused.value.code == "already_invited"
    with db.read() as session:
        assert session.scalars(select(Invite.id)).all() == [first]


def test_invite_replaces_an_expired_invite_and_follows_an_accepted_invite(db: Database) -> None:
    with db.write() as session:
        invite(session)
        session.execute(update(Invite).values(expires_at=1.0))
    with db.write() as session:
        replaced = invite(session)
        account = accounts.log_in(session, identity_of(ADA), None)
        accounts.remove(session, account, actor="operator", request_id=None)
        following = invite(session)

    with db.read() as session:
        assert set(session.scalars(select(Invite.id))) == {replaced, following}


def test_new_address_of_a_person_is_recorded(db: Database) -> None:
    user_id = add(db, ADA)
    for _ in range(2):
        with db.write() as session:
            accounts.log_in(session, replace(identity_of(ADA), email="ada@new.example.com"), None)

    with db.read() as session:
        changed = session.scalars(select(Audit).where(Audit.action == "user.update")).all()
    assert [(row.actor, row.target, row.details) for row in changed] == [
        (f"user:{user_id}", user_id, {"email": "ada@new.example.com", "previous_email": ADA})
    ]


def test_address_of_several_people_names_none(db: Database) -> None:
    user_id = add(db, ADA)
    add(db, "eva@example.com")
    with db.read() as session:
        account = accounts.find_by_email(session, " Ada@Example.com")
        assert account is not None
        assert account.id == user_id
        assert accounts.find_by_email(session, "nobody@example.com") is None
    with db.write() as session:
        accounts.log_in(session, replace(identity_of("eva@example.com"), email=ADA), None)

    with db.read() as session, pytest.raises(InvalidRequest) as refused:
        accounts.find_by_email(session, ADA)

    assert refused.value.code == "ambiguous_email"
