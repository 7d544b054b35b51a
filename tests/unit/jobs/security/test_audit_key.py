"""The audit key: made once, outside of the database, and never again for a log that lost its signature."""

import stat
from pathlib import Path

import pytest
from sqlalchemy import update

from jobs.db.engine import Database
from jobs.ledger import audit
from jobs.ledger.audit import AuditVerdict
from jobs.ledger.tables import AuditHead
from jobs.security.audit_key import audit_key, create_audit_key, sign
from jobs.settings import Settings

pytestmark = pytest.mark.dialects


@pytest.fixture
def host(db: Database, tmp_path: Path) -> Settings:
    """Return the settings of a host whose release step has run over a log with three rows."""
    with db.write() as session:
        for n in range(3):
            audit.record(session, actor="operator", action="x", target=str(n))
        audit.seal(session)
    return released(db, tmp_path / "first")


def released(db: Database, folder: Path, key: str = "") -> Settings:
    folder.mkdir(exist_ok=True)
    config = Settings(data_dir=folder, audit_key=key)
    create_audit_key(db, config)
    return config


def verdict(db: Database, config: Settings) -> AuditVerdict:
    with db.read() as session:
        return audit.verify(session, key=audit_key(config))


def files(config: Settings) -> list[str]:
    return [path.name for path in config.data_dir.iterdir()]


def test_first_release_step_creates_private_key_and_signs_existing_log(db: Database, host: Settings) -> None:
    key = audit_key(host)

    create_audit_key(db, host)

    assert stat.S_IMODE((host.data_dir / "audit.key").stat().st_mode) == 0o600
    assert (files(host), audit_key(host)) == (["audit.key"], key)
    assert (verdict(db, host).signed, verdict(db, host).faults) == (3, ())


def test_other_host_creates_no_key_and_accepts_key_of_first_host(db: Database, host: Settings, tmp_path: Path) -> None:
    other = released(db, tmp_path / "second")
    without = verdict(db, other)
    given = released(db, tmp_path / "second", audit_key(host))

    assert (files(other), without.signed, without.faults) == ([], None, ())
    assert (files(given), verdict(db, given).signed) == ([], 3)
    assert verdict(db, host).faults == ()


def test_removed_signature_is_restored_only_by_sign_command(db: Database, host: Settings) -> None:
    with db.write() as session:
        session.execute(update(AuditHead).values(signed=None, signature=None))
    create_audit_key(db, host)
    with db.write() as session:
        audit.extend_signature(session, audit_key(host))
    found = verdict(db, host).faults

    assert found == ("the chain is not signed with the audit key",)
    assert (sign(db, host), verdict(db, host).faults) == (3, ())


def test_a_release_step_that_was_killed_at_any_point_is_repeated_to_its_end(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, broken in enumerate(((audit, "sign"), (Path, "replace"))):
        with db.write() as session:
            session.execute(update(AuditHead).values(signed=None, signature=None))
        monkeypatch.setattr(*broken, _killed)
        with pytest.raises(KeyboardInterrupt):
            released(db, tmp_path / str(number))
        monkeypatch.undo()

        again = released(db, tmp_path / str(number))

        assert files(again) == ["audit.key"]
        assert verdict(db, again).faults == ()


def _killed(at: object, target: object) -> None:
    """End instead of signing, or of giving the file of the key its name; temporary files get theirs."""
    if not isinstance(at, Path) or at.name == "audit.key.new":
        raise KeyboardInterrupt
    at.rename(str(target))


def test_sign_command_replaces_lost_key(db: Database, host: Settings) -> None:
    lost = host.data_dir / "audit.key"
    lost.unlink()
    create_audit_key(db, host)
    without = verdict(db, host)

    sign(db, host)

    assert (without.signed, lost.exists(), verdict(db, host).signed) == (None, True, 3)
    assert verdict(db, host).faults == ()


@pytest.mark.parametrize("length", [1, 31])
def test_a_short_key_is_refused_without_being_shown(length: int) -> None:
    with pytest.raises(ValueError, match="at least 32 characters") as refused:
        Settings(audit_key="x" * length)

    assert "xx" not in str(refused.value)
