"""`nightmill doctor`: what is installed, reachable and misconfigured, and how to fix it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from cli.doctor.findings import Finding, Severity
from cli.options import HostOptions
from cli.terminal import escaped, show_json

_MARKS = {Severity.FINE: "[green]ok[/]    ", Severity.WARNING: "[yellow]note[/]  ", Severity.BROKEN: "[red]broken[/]"}


def doctor(
    options: HostOptions,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read the whole database, and look for the objects that its rows name.")
    ] = False,
) -> None:
    """Check this installation and say what is wrong and how to repair it. Exit code 1 if something is broken."""
    findings = list(examine(options.data_dir, deep=deep))
    if options.as_json:
        show_json([finding.to_json() for finding in findings])
    else:
        _show(findings)
    raise typer.Exit(any(finding.health is Severity.BROKEN for finding in findings))


def examine(data_dir: Path | None, *, deep: bool = False) -> Iterable[Finding]:
    """Yield every finding, in the order of the checks. Settings that cannot be read end the examination."""
    from cli.doctor.checks import CHECKS, DEEP_CHECKS, Patient
    from cli.errors import CliError
    from cli.up.effective import running
    from cli.up.folder import DataFolder

    try:
        config = running(data_dir)
    except CliError as error:
        yield Finding("settings", Severity.BROKEN, str(error), "correct it in the environment")
        return
    folder = DataFolder(config.data_dir)
    patient = Patient(config, folder, folder.read_run())
    for check in CHECKS + (DEEP_CHECKS if deep else ()):
        yield from check(patient)


def _show(findings: list[Finding]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    for finding in findings:
        first, *more = finding.message.split("\n")  # a models file may have several errors
        console.print(f"{_MARKS[finding.health]} {escaped(finding.check)}: {escaped(first)}")
        for line in more:
            console.print(f"         {escaped(line)}")
        if finding.fix:
            console.print(f"         to fix it: {escaped(finding.fix)}")
    broken = sum(finding.health is Severity.BROKEN for finding in findings)
    console.print(f"\n{broken} broken, {len(findings)} looked at" if broken else "\nnothing is broken")
