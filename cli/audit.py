"""`nightmill audit`: what was done, by whom, and proof that the record was not changed."""

from typing import Annotated

import typer

from cli.options import DataDir
from cli.trouble import Trouble

app = typer.Typer(help="Check the audit log.", no_args_is_help=True)
_SHOWN = 20


@app.callback()
def group() -> None:
    """Check the audit log."""


@app.command()
def verify(
    data_dir: DataDir = None,
    anchor: Annotated[
        str,
        typer.Option(metavar="SEAL:HASH", help="A head noted earlier: proves that nothing before it was rewritten."),
    ] = "",
) -> None:
    """Walk the whole hash chain. Exit code 1 if a row was changed, removed, or left unsealed for over a minute."""
    from cli.ledger import opened
    from jobs.audit import verify as verify_chain

    with opened(data_dir) as db, db.read() as session:
        verdict = verify_chain(session, anchor=_parsed(anchor))
    for fault in verdict.faults[:_SHOWN]:
        print(fault)
    if verdict.faults:
        raise Trouble(f"the audit log is not intact: {len(verdict.faults)} faults in {verdict.rows} rows")
    print(f"the audit log is intact: {verdict.rows} rows")
    print(f"note its head outside this machine, for --anchor: {verdict.rows}:{verdict.head}")


def _parsed(anchor: str) -> tuple[int, str] | None:
    if not anchor:
        return None
    seal, _, digest = anchor.partition(":")
    if not seal.isdigit() or len(digest) != 64:
        raise Trouble(f"'{anchor}' is no anchor; one looks like 1234:<64 hexadecimal digits>")
    return int(seal), digest
