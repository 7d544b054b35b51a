"""Every command can be read aloud: it says what it does, and so does each of its options."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from cli.main import app

EXPECTED = {
    "up", "status", "logs", "down", "doctor", "submit", "jobs", "watch", "cancel", "retry", "demo",
    "run-batch", "models list", "models add", "models probe", "models pull", "models remove",
    "prompts list", "prompts show", "prompts create", "prompts version", "prompts update", "prompts archive",
    "prompts diff",
    "feedback add", "feedback list", "feedback delete", "feedback summary",
    "aliases list", "aliases set", "aliases show", "aliases moves", "aliases revert", "aliases delete",
    "models versions", "models families", "models show", "models stage", "models update", "models lineage",
    "models compare", "models verify", "models import", "models reproduce",
    "pipelines run", "pipelines list", "pipelines show", "pipelines graph", "pipelines resume", "pipelines cancel",
    "datasets create", "datasets add", "datasets list", "datasets show", "datasets versions", "datasets rows",
    "datasets delete",
    "promote alias", "promote stage", "promote prompt", "promote index", "promote list", "promote show",
    "promote cancel",
    "drift create", "drift baseline", "drift check", "drift list", "drift checks", "drift show", "drift delete",
    "online-evals create", "online-evals list", "online-evals show", "online-evals rounds", "online-evals pause",
    "online-evals resume", "online-evals delete",
    "schedules create", "schedules list", "schedules show", "schedules pause", "schedules resume", "schedules remove",
    "sources list", "sources add", "sources sync", "sources remove",
    "finetune submit", "finetune list", "finetune watch", "finetune curve", "finetune cancel", "finetune pause",
    "finetune resume", "finetune checkpoints", "finetune export",
    "evals create", "evals list", "evals run", "evals watch", "evals compare", "migrate openai",
    "indexes list", "indexes create", "indexes compare", "indexes switch", "indexes back", "indexes sync",
    "indexes remove",
    "console", "results", "explain", "graph", "workers", "pause", "resume", "drain",
    "chat", "files upload", "files list", "files get", "files download", "files delete",
    "stores create", "stores list", "stores add", "stores files", "stores search", "stores remove", "stores delete",
    "webhooks create", "webhooks list", "webhooks test", "webhooks deliveries", "webhooks delete",
    "keys create", "keys list", "keys revoke", "audit list", "audit sign", "audit verify", "vectors verify",
    "webhooks listen",
    "projects list", "projects create", "projects show", "projects update", "projects archive",
    "users list", "users invite", "users remove", "users roles",
    "limits show", "limits set", "budgets show", "budgets set", "budgets alert",
    "usage bytes", "usage report", "usage verify", "prices list", "prices set",
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


def test_a_file_that_is_missing_is_named_without_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app(["files", "upload", "nothing.txt", "--url", "http://127.0.0.1:1", "--api-key", "k"])

    assert capsys.readouterr().err == "nightmill: nothing.txt: No such file or directory\n"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_has_help_text(name: str) -> None:
    command = COMMANDS[name]

    assert len(command.help.split()) >= 4
    assert [option.name for option in command.params if not getattr(option, "help", "")] == []
    assert CliRunner().invoke(app, [*name.split(), "--help"]).exit_code == 0


@pytest.mark.parametrize("name", ["", *sorted(COMMANDS)])
def test_help_has_a_short_form_and_no_type_of_flags(name: str) -> None:
    told = CliRunner().invoke(app, [*name.split(), "-h"])

    assert told.exit_code == 0
    assert "-h" in told.stdout
    assert not re.search(r"<bool>|<list\[", told.stdout)


def test_the_shell_completes_commands() -> None:
    asked = {**os.environ, "_NIGHTMILL_COMPLETE": "complete_bash", "COMP_WORDS": "nightmill ret", "COMP_CWORD": "1"}
    call = "from cli.main import app; app(prog_name='nightmill')"

    told = subprocess.run([sys.executable, "-c", call], env=asked, capture_output=True, text=True, check=False)

    assert told.stdout.split() == ["retry"]
    assert "--install-completion" in CliRunner().invoke(app, ["-h"]).stdout


#: Libraries that take long to import. Help and completion need none of them; Typer itself needs pydantic.
HEAVY = {
    "aiohttp", "alembic", "celery", "fastapi", "httpx", "httpx2", "numpy", "openai", "psutil", "pyarrow",
    "pydantic_settings", "redis", "sqlalchemy", "standardwebhooks", "torch", "vllm", "yaml",
}  # fmt: skip
_IMPORTED = """
import json, sys
from cli.main import app
for words in json.loads(sys.argv[1]):
    try:
        app([*words, "--help"], prog_name="nightmill")
    except SystemExit:
        pass
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.verify
def test_help_imports_no_library_that_takes_long_to_import() -> None:
    words = json.dumps([[], *(name.split() for name in COMMANDS)])

    ran = subprocess.run([sys.executable, "-c", _IMPORTED, words], capture_output=True, text=True, check=True)

    assert set(json.loads(ran.stdout.splitlines()[-1])) & HEAVY == set()


#: These start or follow processes, or write results, whose own formats are options.
WITHOUT_JSON = {"up", "demo", "logs", "results", "run-batch"}


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WITHOUT_JSON))
def test_a_command_that_prints_has_json(name: str) -> None:
    assert any("--json" in option.opts for option in COMMANDS[name].params)


def test_version_is_printed() -> None:
    told = CliRunner().invoke(app, ["--version"])

    assert told.exit_code == 0
    assert told.stdout.startswith("nightmill ")
