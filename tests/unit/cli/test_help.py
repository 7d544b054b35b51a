"""Every command can be read aloud: it says what it does, and so does each of its options."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from cli.main import app

EXPECTED = {
    "up", "status", "logs", "down", "doctor", "submit", "jobs", "watch", "cancel", "retry", "demo", "usage",
    "run-batch", "models list", "models add", "models pull", "models remove",
    "schedules list", "schedules pause", "schedules resume", "schedules remove",
    "sources list", "sources add", "sources sync", "sources remove",
    "indexes list", "indexes create", "indexes compare", "indexes switch", "indexes back", "indexes sync",
    "indexes remove",
    "results", "embed-eval", "explain", "graph", "workers", "pause", "resume", "drain",
    "keys create", "keys list", "keys revoke", "audit verify", "vectors verify", "webhooks listen",
}  # fmt: skip


def _commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_every_command_of_the_documentation_is_there() -> None:
    assert set(COMMANDS) == EXPECTED


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_and_each_of_its_options_say_what_they_do(name: str) -> None:
    command = COMMANDS[name]

    assert len(command.help.split()) >= 4
    assert [option.name for option in command.params if not getattr(option, "help", "")] == []
    assert CliRunner().invoke(app, [*name.split(), "--help"]).exit_code == 0


def test_the_version_is_told() -> None:
    told = CliRunner().invoke(app, ["--version"])

    assert told.exit_code == 0
    assert told.stdout.startswith("nightmill ")
