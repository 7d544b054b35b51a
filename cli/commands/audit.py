"""`nightmill audit`: list the audit log of a project, sign the whole log, and check that it was not changed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import HostOptions, Limit, ServerOptions
from cli.terminal import moment, say, show_json

app = Group("List, sign and check the audit log.")
_SHOWN = 20


@app.command("list")
def list_(
    options: ServerOptions,
    target: Annotated[str, typer.Option(help="Only rows about this object, such as a job or a key.")] = "",
    limit: Limit = 20,
) -> None:
    """List the audit log of your project, the newest rows first."""
    head = ("target", "type", "time", "actor", "from", "to")
    options.show_entries(options.server.pages("/audit_logs", {"target": target} if target else {}, limit), head, _row)


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    change = (row["source"] or "-", row["destination"] or "-")
    return row["target"], row["type"], moment(row["effective_at"]), row["actor"], *change


@app.command()
def verify(
    options: HostOptions,
    anchor: Annotated[
        str,
        typer.Option(metavar="SEAL:HASH", help="A head noted earlier, to prove that no row before it was rewritten."),
    ] = "",
    anchors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file of the heads that NIGHTMILL_AUDIT_ANCHOR has sent, as JSON Lines."),
    ] = None,
) -> None:
    """Check the whole hash chain and its signature.

    Exit code 1 if a row was changed, removed, or left unsealed for over a minute, or the signature is missing or wrong.
    """
    from cli.up.effective import effective, opened
    from jobs.ledger.audit import verify as verify_chain
    from jobs.security.audit_key import audit_key

    known = [*_parse_anchor(anchor), *_read_anchors(anchors)]
    key = audit_key(effective(data_dir=options.data_dir))
    with opened(options.data_dir) as db, db.snapshot() as session:
        verdict = verify_chain(session, key=key, anchors=known)
    if options.as_json:
        faults = list(verdict.faults[:_SHOWN])
        outcome = {"intact": not faults, "rows": verdict.rows, "removed": verdict.removed, "signed": verdict.signed}
        show_json({**outcome, "head": verdict.head, "faults": faults})
    for fault in () if options.as_json else verdict.faults[:_SHOWN]:
        say(fault)
    if verdict.faults:
        raise CliError(f"the audit log is not intact: {len(verdict.faults)} faults in {verdict.rows} rows")
    if options.as_json:
        return
    before = f"; retention has removed the {verdict.removed} rows before them" if verdict.removed else ""
    say(f"the audit log is intact: {verdict.rows} rows{before}")
    if key:
        say(f"rows up to {verdict.signed} are signed with the audit key: only who has it can have rewritten them")
    anchored = [seal for seal, _ in known if seal >= verdict.removed]
    if anchored:
        say(f"it agrees with {len(anchored)} anchors; rows after {max(anchored)} are covered by none")
    if not key:
        say("this host has no audit key (`audit.key` of its data folder, or NIGHTMILL_AUDIT_KEY), so no signature was")
        say("checked: a chain that was recomputed as a whole, or cut off, by somebody who may write to the database,")
        say("cannot be told from an intact one, except up to an anchor")
    say(f"note its head outside this machine, for --anchor: {verdict.seal}:{verdict.head}")


@app.command()
def sign(options: HostOptions) -> None:
    """Sign the audit log as it is now, with the audit key of this host, which is made if there is none.

    For a key that several hosts share, and after a restore without the key. Verify the log before.
    """
    from cli.up.effective import effective, opened
    from jobs.security import audit_key

    with opened(options.data_dir) as db:
        seal = audit_key.sign(db, effective(data_dir=options.data_dir))
    options.show({"signed": seal}, f"the audit log is signed as it is: {seal} rows")


def _read_anchors(anchors: Path | None) -> list[tuple[int, str]]:
    from jobs.ledger.anchors import read

    if anchors is None:
        return []
    try:
        return read(anchors)
    except ValueError as error:
        raise CliError(f"{anchors} is no file of anchors: {error}") from error


def _parse_anchor(anchor: str) -> list[tuple[int, str]]:
    if not anchor:
        return []
    seal, _, digest = anchor.partition(":")
    if not seal.isdigit() or len(digest) != 64:
        raise CliError(f"'{anchor}' is not an anchor; one looks like 1234:<64 hexadecimal digits>")
    return [(int(seal), digest)]
