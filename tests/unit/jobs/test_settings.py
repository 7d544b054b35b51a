"""Settings out of files: any of them, read once, and never shown in what goes wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from cli.errors import CliError
from cli.up.effective import effective
from jobs.platform.secret_files import anchor, replace_values, secret
from jobs.settings import Settings, wrong_names

ROOT = Path(__file__).parents[3]
#: The files that may name a variable.
_SOURCES = {"", ".py", ".yaml", ".md", ".example"}
URL = "postgresql+psycopg://nightmill:hunter2@database/nightmill"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{URL}\n")
    return path


def test_a_setting_is_read_from_the_file_without_the_line_s_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL_FILE", str(file))

    assert Settings().database_url == URL


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "8123\n", 8123),
        ("engine_urls", "http://a/v1,http://b/v1\r\n", ("http://a/v1", "http://b/v1")),
        ("vllm_enabled", "false", False),
        ("engine_api_key", " of blanks \n\n", " of blanks "),
        ("models_file", "/etc/models.yaml\n", "/etc/models.yaml"),
    ],
)
def test_every_kind_of_setting_may_come_from_a_file(
    name: str, text: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "value").write_text(text)
    monkeypatch.setenv(f"NIGHTMILL_{name.upper()}_FILE", str(tmp_path / "value"))

    assert getattr(Settings(), name) == value


def test_setting_with_name_ending_in_file_is_no_secret_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_MODELS_FILE", "/nowhere/models.yaml")

    assert Settings().models_file == "/nowhere/models.yaml"


def test_an_empty_name_of_a_file_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL_FILE", "")
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", URL)

    assert Settings().database_url == URL


def test_constructor_argument_overrides_secret_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL_FILE", str(file))

    assert Settings(database_url="sqlite://").database_url == "sqlite://"


def test_a_value_and_a_file_are_refused_by_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL_FILE", str(file))
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", URL)

    with pytest.raises(SettingsError, match="NIGHTMILL_DATABASE_URL and NIGHTMILL_DATABASE_URL_FILE are both set"):
        Settings()


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read"), (b"", "is empty"), (b"\n", "is empty"), (b"hunter2\xff", "UTF-8")]
)
def test_a_file_without_a_value_is_refused_by_name_and_nothing_of_it_is_shown(
    content: bytes | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hunter2"  # someone put the secret itself where its file belongs
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("NIGHTMILL_BROKER_URL_FILE", str(path))

    with pytest.raises(SettingsError, match=told) as caught:
        Settings()

    assert "NIGHTMILL_BROKER_URL_FILE" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_command_says_which_file_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_ENGINE_API_KEY_FILE", "/nowhere/at/all")

    with pytest.raises(CliError, match="NIGHTMILL_ENGINE_API_KEY_FILE: its file cannot be read"):
        effective()


def test_a_process_that_cannot_read_its_secret_ends_and_shows_none(tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("hunter2")
    environment = {"NIGHTMILL_PORT_FILE": str(tmp_path / "wrong"), "NIGHTMILL_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.bootstrap"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("nightmill: NIGHTMILL_PORT: ")
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("NIGHTMILL_LEASE_SECOND", "NIGHTMILL_LEASE_SECOND is not a setting: did you mean NIGHTMILL_LEASE_SECONDS?"),
        ("NIGHTMILL_DATABSE_URL_FILE", "NIGHTMILL_DATABSE_URL_FILE is not a setting: did you mean"),
        (
            "NIGHTMILL_BATCH_MAX_EMBEDDING_INPUTS",
            "NIGHTMILL_BATCH_MAX_EMBEDDING_INPUTS is now NIGHTMILL_BATCH_MAX_LINES",
        ),
        (
            "NIGHTMILL_BATCH_MAX_EMBEDDING_INPUTS_FILE",
            "NIGHTMILL_BATCH_MAX_EMBEDDING_INPUTS_FILE is now NIGHTMILL_BATCH_MAX_LINES_FILE",
        ),
        ("NIGHTMILL_WORKER_NICE", "NIGHTMILL_WORKER_NICE is not a setting any more: its value is fixed, 10"),
        ("NIGHTMILL_QXJ", "NIGHTMILL_QXJ is not a setting"),
    ],
)
def test_unknown_setting_is_refused_with_suggestion(name: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter2")

    with pytest.raises(CliError) as caught:
        effective()

    assert str(caught.value).startswith(told)
    assert "hunter2" not in str(caught.value)


def test_all_unknown_settings_are_reported_together() -> None:
    told = wrong_names({"NIGHTMILL_A": "", "NIGHTMILL_BEAT_SECONDS": "", "PATH": "", "NIGHTMILL_PORT": "1"})

    assert len(told) == 2


def test_names_that_commands_and_tests_read_are_known() -> None:
    """Every name in the sources and in what is deployed is a setting, or is read elsewhere."""
    folders = [ROOT / name for name in ("api", "cli", "jobs", "workers", "migrations", "bench", "deploy")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix in _SOURCES]
    names = set(re.findall(r"\bNIGHTMILL_[A-Z][A-Z0-9_]*[A-Z0-9]\b", "".join(path.read_text() for path in files)))

    assert len(names) > 40
    assert wrong_names(dict.fromkeys(names, "")) == []


@pytest.mark.parametrize("name", Settings.model_fields)
def test_description_of_a_setting_is_a_sentence_with_its_unit(name: str) -> None:
    description = Settings.model_fields[name].description or ""

    assert re.fullmatch(r"[A-Z`].*\.", description)
    assert all(unit in description.lower() for unit in ("seconds", "bytes") if name.endswith(unit))


def test_a_level_of_logs_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_LOG_LEVEL", "VERBOSE")

    with pytest.raises(CliError, match="NIGHTMILL_LOG_LEVEL: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"):
        effective()


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        ("http://a/v1,ftp://b", "must be an http or https URL with a host"),
        ("http://a/v1,b:8000", "must be an http or https URL with a host"),
        ("http://u:hunter2@a/v1", "must carry no user name or password: set NIGHTMILL_ENGINE_API_KEY"),
    ],
)
def test_invalid_engine_url_is_refused_without_leaking_password(
    urls: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTMILL_ENGINE_URLS", urls)

    with pytest.raises(CliError) as caught:
        effective()

    assert str(caught.value) == f"NIGHTMILL_ENGINE_URLS: {told}"
    with pytest.raises(ValidationError) as shown:
        Settings()
    assert "hunter2" not in str(shown.value)


def test_settings_that_are_shown_hold_no_secret(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "ENGINE_API_KEY"):
        monkeypatch.setenv(f"NIGHTMILL_{name}_FILE", str(file))

    assert "hunter2" not in repr(Settings())


def test_a_secret_of_another_name_is_found_in_either_place(file: Path) -> None:
    assert secret("KEY", {"KEY": "a"}) == "a"
    assert secret("KEY", {"KEY_FILE": str(file)}) == URL
    assert secret("KEY", {}) == ""


def test_relative_secret_file_paths_are_made_absolute_for_children(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    environment = {"A_FILE": file.name, "B_FILE": "not-there", "C": file.name, "D_FILE": "", "E_FILE": str(file)}

    anchor(environment)

    assert environment == {
        "A_FILE": str(file),
        "B_FILE": "not-there",
        "C": file.name,
        "D_FILE": "",
        "E_FILE": str(file),
    }


def test_override_for_child_replaces_secret_file_variable() -> None:
    environment = {"A": "1", "B_FILE": "/run/secrets/b", "C_FILE": "/run/secrets/c"}

    assert replace_values(environment, {"B": ""}) == {"A": "1", "B": "", "C_FILE": "/run/secrets/c"}


@pytest.mark.parametrize("name", ["job_retention_seconds", "audit_retention_seconds"])
def test_row_retention_shorter_than_data_retention_is_refused(name: str) -> None:
    limits: dict[str, Any] = {"retention_seconds": 60, name: 59}

    with pytest.raises(ValidationError, match=f"NIGHTMILL_{name.upper()} is 0, or no less than"):
        Settings(**limits)
    assert getattr(Settings(**limits | {name: 0}), name) == 0
    assert getattr(Settings(**limits | {name: 60}), name) == 60
