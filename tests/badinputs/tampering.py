"""An audit log that was changed behind the product's back: `nightmill audit verify` over a copy of it.

What a chain alone cannot know, a tail that was cut off together with its head and a chain written anew as a whole, is
found with the audit key, or with a head that was noted elsewhere before (`--anchor`, `--anchors`).
"""

import itertools
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

from typer.testing import CliRunner

from cli.main import app
from jobs.bootstrap import migrate
from jobs.db.engine import Database
from jobs.ledger.anchors import Anchor, append
from jobs.ledger.audit import GENESIS, digest, record, seal, sign, signature, unsealed, verify
from jobs.security.audit_key import AUDIT_KEY
from tests.badinputs.case import Case
from tests.badinputs.json_bodies import BATCH
from tests.badinputs.world import World

AREA = "Audit"
Tamper = Callable[[sqlite3.Connection], None]
_ROWS = 12
_KEY = "k" * 43
_numbers = itertools.count()


def tampered(world: World, tamper: Tamper) -> str:
    """Return whether it is noticed: with the audit key; without it by the chain alone, and with an anchor."""
    path = _copied(world)
    key = path.with_name(AUDIT_KEY)
    key.write_text(_KEY)
    anchor = _verify(path)[1]
    with sqlite3.connect(path) as connection:
        tamper(connection)
    connection.close()
    signed, _ = _verify(path)
    key.unlink()
    plain, _ = _verify(path)
    found, _ = _verify(path, "--anchor", anchor)
    of_file, _ = _verify(path, "--anchors", str(_anchors(path.parent, anchor)))
    told = found if found == of_file else f"{found}, in a file {of_file}"
    return f"{signed}; without the key {plain}, with an anchor {told}"


def _anchors(folder: Path, anchor: str) -> Path:
    """Write the file that NIGHTMILL_AUDIT_ANCHOR would have written."""
    seal, _, digest = anchor.partition(":")
    file = folder / "anchors.jsonl"
    append(file, Anchor("anchor_1", 1.0, int(seal), digest))
    return file


def _copied(world: World) -> Path:
    """Copy the database when it has enough rows and all of them are sealed."""
    sealed = world.folder / "sealed.db"
    if not sealed.exists():
        _seal(world, sealed)
    folder = world.folder / f"audit-{next(_numbers)}"
    folder.mkdir()
    return Path(shutil.copy(sealed, folder / "nightmill.db"))


def _seal(world: World, path: Path) -> None:
    world.upload(b"x")
    for _ in range(_ROWS):
        world.client.post("/v1/batches", json=BATCH)

    def ready() -> bool:
        with world.db.read() as session:
            return not unsealed(session)

    world.eventually(ready, "all rows are sealed")
    source, copy = sqlite3.connect(world.data / "nightmill.db"), sqlite3.connect(path)
    source.backup(copy)
    copy.execute("DELETE FROM audit WHERE seal IS NULL")  # written while we copied, and no matter here
    copy.commit()
    source.close()
    copy.close()
    db = Database(f"sqlite:///{path}", patience=10)
    with db.write() as session:
        sign(session, _KEY)
    db.close()


def _verify(path: Path, *options: str) -> tuple[str, str]:
    """Return what the command finds, and the head that it tells to note."""
    words = ["audit", "verify", "--data-dir", str(path.parent), *options]
    done = CliRunner().invoke(app, words)
    if done.exit_code == 0:
        head = re.search(r"\d+:[0-9a-f]{64}", done.stdout)
        assert head is not None, done.stdout
        return "intact", head[0]
    assert "not intact" in str(done.exception), done.output
    return "detected", ""


def untouched(_: sqlite3.Connection) -> None:
    """Change nothing, as the control."""


def edit(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE audit SET actor = 'k' || substr(actor, 2) || 'x' WHERE seal = 3")


def edit_details(connection: sqlite3.Connection) -> None:
    first = "(SELECT min(seal) FROM audit WHERE details IS NOT NULL AND details != 'null')"
    changed = connection.execute(f"UPDATE audit SET details = '{{\"bytes\": 123}}' WHERE seal = {first}")
    assert changed.rowcount == 1


def edit_hash(connection: sqlite3.Connection) -> None:
    other = "CASE WHEN hash LIKE '0%' THEN '1' ELSE '0' END"
    connection.execute(f"UPDATE audit SET hash = {other} || substr(hash, 2) WHERE seal = 3")


def delete(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM audit WHERE seal = 5")


def delete_first(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM audit WHERE seal = 1")


def swap(connection: sqlite3.Connection) -> None:
    rows = connection.execute("SELECT seal, hash FROM audit WHERE seal IN (3, 4) ORDER BY seal").fetchall()
    connection.execute("UPDATE audit SET seal = -seal WHERE seal IN (3, 4)")
    for (number, _), (other, hash_) in zip(rows, reversed(rows), strict=True):
        connection.execute("UPDATE audit SET seal = ?, hash = ? WHERE seal = ?", (other, hash_, -number))


def insert_sealed(connection: sqlite3.Connection) -> None:
    """Insert a forged row behind the last one, with its right hash, and leave the head unchanged."""
    number, hash_ = connection.execute("SELECT seal, hash FROM audit_head").fetchone()
    row = {"id": 10**6, "at": int(time.time() * 1e6), "actor": "key:x", "action": "key.create", "target": "x"}
    row |= dict.fromkeys(("project_id", "source", "destination", "request_id", "details"))
    row |= {"seal": number + 1, "hash": digest(hash_, SimpleNamespace(**row), number + 1)}
    names = ", ".join(row)
    connection.execute(f"INSERT INTO audit ({names}) VALUES ({', '.join('?' * len(row))})", list(row.values()))


def insert_unsealed(connection: sqlite3.Connection) -> None:
    """Insert an unsealed forged row among the old ones."""
    connection.execute(
        "INSERT INTO audit (at, actor, action, target) SELECT at - 3600000000, actor, action, 'forged' "
        "FROM audit WHERE seal = 2"
    )


def truncate(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM audit WHERE seal > (SELECT max(seal) - 3 FROM audit)")


def truncate_with_head(connection: sqlite3.Connection) -> None:
    truncate(connection)
    connection.execute("UPDATE audit_head SET (seal, hash) = (SELECT seal, hash FROM audit ORDER BY seal DESC LIMIT 1)")


def empty(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM audit")
    connection.execute("DELETE FROM audit_head")


def rewrite(connection: sqlite3.Connection) -> None:
    """Another actor everywhere, and each hash computed anew."""
    connection.row_factory = sqlite3.Row
    connection.execute("UPDATE audit SET actor = 'key:somebody' WHERE seal = 2")
    hash_ = GENESIS
    for row in connection.execute("SELECT * FROM audit ORDER BY seal").fetchall():
        fields = dict(row) | {"details": json.loads(row["details"]) if row["details"] else None}
        hash_ = digest(hash_, SimpleNamespace(**fields), row["seal"])
        connection.execute("UPDATE audit SET hash = ? WHERE id = ?", (hash_, row["id"]))
    connection.execute("UPDATE audit_head SET hash = ?", (hash_,))


def rewrite_unsigned(connection: sqlite3.Connection) -> None:
    rewrite(connection)
    connection.execute("UPDATE audit_head SET signed = NULL, signature = NULL")


def rewrite_signed(connection: sqlite3.Connection) -> None:
    """Sign what was rewritten with another key."""
    rewrite(connection)
    seal_, hash_ = connection.execute("SELECT seal, hash FROM audit_head").fetchone()
    signed = seal_, signature("forged", seal_, hash_)
    connection.execute("UPDATE audit_head SET signed = ?, signature = ?", signed)


def truncate_signed(connection: sqlite3.Connection) -> None:
    truncate_with_head(connection)
    connection.execute("UPDATE audit_head SET signed = seal")


def many(world: World) -> str:
    """100,000 rows are verified in 5 seconds; 10,000 in two in the tests."""
    count, seconds = (100_000, 5.0) if world.full else (10_000, 2.0)
    url = f"sqlite:///{world.folder / f'many-{next(_numbers)}.db'}"
    migrate(url)
    db = Database(url, patience=10)
    with db.write() as session:
        for n in range(count):
            record(session, actor="test", action="job.submit", target=f"batch_{n}", details={"n": n})
        session.flush()
        seal(session, count)
    began = time.monotonic()
    with db.read() as session:
        verdict = verify(session)
    took = time.monotonic() - began
    db.close()
    told = "in time" if took < seconds * world.margin else f"in {took:.1f} s"
    return f"{'all' if verdict.rows == count else verdict.rows} rows, {len(verdict.faults)} faults, {told}"


ALWAYS = "detected; without the key detected, with an anchor detected"
SIGNED = "detected; without the key intact, with an anchor detected"
TAMPERS: dict[str, tuple[str, Tamper]] = {
    "nothing changed (control)": ("intact; without the key intact, with an anchor intact", untouched),
    "a byte of a row edited": (ALWAYS, edit),
    "a row's details edited": (ALWAYS, edit_details),
    "a hash edited": (ALWAYS, edit_hash),
    "a row deleted": (ALWAYS, delete),
    "the first row deleted": (ALWAYS, delete_first),
    "two rows swapped": (ALWAYS, swap),
    "a sealed row inserted": (ALWAYS, insert_sealed),
    "an unsealed row inserted": (ALWAYS, insert_unsealed),
    "the tail cut off": (ALWAYS, truncate),
    "the tail cut off, the head moved": (SIGNED, truncate_with_head),
    "all rows and the head removed": (SIGNED, empty),
    "the tail cut off, the head and its signature moved": (SIGNED, truncate_signed),
    "all rewritten": (SIGNED, rewrite),
    "all rewritten, the signature removed": (SIGNED, rewrite_unsigned),
    "all rewritten, signed with another key": (SIGNED, rewrite_signed),
}


def cases() -> Iterator[Case]:
    for name, (expected, tamper) in TAMPERS.items():
        yield Case(AREA, name, expected, lambda world, tamper=tamper: tampered(world, tamper), creates=True)
    yield Case(AREA, "a long log is verified", "all rows, 0 faults, in time", many)
