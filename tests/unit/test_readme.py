"""Compare README.md and docs/ with the code: settings, states, commands, targets and paths are those that exist."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cli.main import app
from cli.up.procfile import load
from jobs.fleet.models_file import Registry
from jobs.ledger.states import JobState
from jobs.queues import Queue
from jobs.renamed_settings import FIXED, RENAMED
from jobs.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
#: What a reader is given: the entrance and every page behind it.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = "\n".join(page.read_text() for page in PAGES)
MAKEFILE = (ROOT / "Makefile").read_text()


def _settings(text: str) -> set[str]:
    """Return the settings that a text names, also those that it takes out of a file."""
    named = {name.lower() for name in re.findall(r"NIGHTMILL_([A-Z0-9_]+)", text)}
    return {name if name in Settings.model_fields else name.removesuffix("_file") for name in named}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENTS, re.MULTILINE | re.DOTALL)


def _commands(command: Any, prefix: str) -> Iterator[str]:
    for name, one in getattr(command, "commands", {}).items():
        if getattr(one, "commands", None):
            yield from _commands(one, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}"


COMMANDS = sorted(_commands(get_command(app), "nightmill"))
TARGETS = sorted(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))


def test_settings_named_anywhere_exist() -> None:
    of_commands = {"test_weaviate_url", "url", "api_key", "idempotency_key", "admin_key", "webhook_secret"}
    assert _settings(DOCUMENTS) - of_commands <= Settings.model_fields.keys()


def test_former_settings_are_those_that_processes_refuse() -> None:
    upgrade = (ROOT / "docs" / "operate" / "upgrade.md").read_text()

    assert dict(re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|$", upgrade, re.MULTILINE)) == RENAMED
    assert dict(re.findall(r"^\| `([A-Z_]+)` \| ([0-9].*) \|$", upgrade, re.MULTILINE)) == FIXED


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_of_a_job_is_documented(state: JobState) -> None:
    assert f"\n| `{state}` |" in DOCUMENTS


def test_readme_is_an_entrance() -> None:
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert f"`{command}" in DOCUMENTS


def test_every_documented_command_exists() -> None:
    for words in re.findall(r"`nightmill ([a-z][a-z -]*[a-z])", DOCUMENTS):
        assert any(f"nightmill {words} ".startswith(f"{command} ") for command in COMMANDS), words


def test_options_in_the_command_table_exist() -> None:
    root: Any = get_command(app)
    for line in DOCUMENTS.splitlines():
        if not line.startswith("| `nightmill "):
            continue
        for words in re.findall(r"`(nightmill [^`]+)`", line):
            command: Any = root
            for word in words.split()[1:]:
                command = command.commands.get(word, command) if hasattr(command, "commands") else command
            known = {option for parameter in command.params for option in parameter.opts}
            assert set(re.findall(r"--[a-z-]+", words)) <= known, words


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_of_the_makefile_is_documented(target: str) -> None:
    assert re.search(rf"(`|^)make {target}\b", DOCUMENTS, re.MULTILINE)


def test_every_documented_target_exists() -> None:
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", DOCUMENTS, re.MULTILINE)) <= set(TARGETS)


def test_every_process_of_the_procfile_is_documented() -> None:
    for line in load(ROOT / "cli" / "up" / "Procfile"):
        assert f"| `{line.name}` |" in DOCUMENTS


@pytest.mark.parametrize("queue", list(Queue))
def test_queues_are_those_of_the_pools(queue: Queue) -> None:
    assert f"`{queue}`" in DOCUMENTS


def test_tree_has_every_package() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]

    for package in packages["packages"]:
        assert re.search(rf"^{package}/ ", DOCUMENTS, re.MULTILINE), package


def test_examples_in_python_can_be_read() -> None:
    assert len(_blocks("python")) >= 2
    for block in _blocks("python"):
        ast.parse(block)


def test_models_files_of_the_documents_are_valid(tmp_path: Path) -> None:
    examples = [block for block in _blocks("yaml") if "\nmodels:" in f"\n{block}"]
    file = tmp_path / "models.yaml"

    assert examples
    for example in examples:
        file.write_text(example)
        assert Registry.read(file).models


def test_links_to_files_lead_somewhere() -> None:
    for name in re.findall(r"`((?:[a-z_]+/)+[A-Za-z_]+\.(?:md|py|yaml))`", DOCUMENTS):
        assert (ROOT / name).exists(), name


def test_pictures_exist_are_small_and_are_in_use() -> None:
    shown = set[Path]()
    for page in PAGES:
        names = re.findall(r"!\[[^]]{10,}\]\((\S+)\)|\{image\} (\S+)", page.read_text())
        shown.update((page.parent / (inline or block)).resolve() for inline, block in names)

    assert {path.suffix for path in shown} == {".png", ".svg"}
    assert [path for path in shown if not path.is_file() or path.stat().st_size > 200_000] == []
    assert {*(ROOT / "docs" / "images").rglob("*.png"), *(ROOT / "docs" / "_static").glob("*.svg")} <= shown


def test_examples_of_the_deployment_page_name_real_settings() -> None:
    text = (ROOT / "deploy" / "README.md").read_text() + (ROOT / "deploy" / ".env.example").read_text()

    assert _settings(text) <= Settings.model_fields.keys()


def test_environment_of_the_deployment_page_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (ROOT / "deploy" / ".env.example").read_text().splitlines():
        if re.match(r"#?[A-Z]", line):  # what stands there to be uncommented too
            [pair] = shlex.split(line.removeprefix("#"))
            monkeypatch.setenv(*pair.split("=", 1))

    assert Settings().database_url.startswith("postgresql+psycopg://")
