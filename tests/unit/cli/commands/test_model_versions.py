"""`nightmill models versions` and its siblings against a web process: what they ask for, change and draw."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import select, update
from typer.testing import CliRunner, Result

from cli.client import server
from cli.main import app
from jobs.files.tables import File
from jobs.finetuning import model_imports
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.registry import base_versions
from jobs.registry.base_versions import LoadedModel
from jobs.registry.tables import ModelVersion, TunedModel
from tests.support.exported_adapters import write_adapter
from tests.support.system import eventually
from tests.support.tuning_requests import BASE, create, registered
from tests.support.web import make_key, running_app, serve
from tests.unit.api.conftest import client_of
from workers.engines.training import checkpoint_folder

Run = Callable[..., Result]
FAMILY = f"{BASE}:support"


@pytest.fixture
def web(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    with running_app(tmp_path, sqlite_url) as web:
        yield web


@pytest.fixture
def names(web: FastAPI) -> list[str]:
    """Return the names of two models of a family; the second one went on from the first one, with another seed."""
    client = client_of(web, make_key(web))
    names = [registered(web, create(client, suffix="support")) for _ in range(2)]
    run = {"step": 4, "versions": {"torch": "2.9.0"}, "dtype": "float32"}
    with web.state.services.db.write() as session:
        for seed, name in enumerate(names):
            facts = {"seed": seed, "run": run, "parent": names[0] if seed else None}
            session.execute(update(TunedModel).where(TunedModel.name == name).values(manifest=facts))
    return names


@pytest.fixture
def run(web: FastAPI) -> Iterator[Run]:
    with serve(web) as url:
        where = ["--url", url, "--api-key", make_key(web)]
        yield lambda *words: CliRunner().invoke(app, ["models", words[0], *where, *words[1:]])


def end_import(web: FastAPI, state: str) -> bool:
    """End an import with a state, as a worker does, if there is one; a success registers the model."""
    with web.state.services.db.write() as session:
        job = session.scalar(select(Job).where(Job.kind == model_imports.NAME))
        if job is None:
            return False
        job.state = JobState(state)
        if state == "failed":
            job.errors = [{"code": "invalid_model", "message": "It has the rank 64.", "line": None, "param": None}]
        else:
            described = {"method": "lora", "sha256": "0" * 64, "manifest": {}}
            job.payload = {**job.payload, "described": described}
            model_imports.register(session, job)
        return True


def output(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output.strip()


def ids(result: Result) -> list[str]:
    return [json.loads(line)["id"] for line in output(result).split("\n") if line]


def test_versions_are_listed_by_family_or_by_model_and_by_stage(run: Run, names: list[str]) -> None:
    output(run("stage", names[0], "production", "--reason", "Fewer refusals."))

    shown = output(run("versions", FAMILY))
    assert [name in shown for name in names] == [True, True]
    assert ids(run("versions", names[1], "--json")) == names[::-1]
    assert ids(run("versions", "--stage", "production", "--json")) == names[:1]
    assert ids(run("versions", "--at", "2020-03-31", "--json")) == []


def test_families_are_listed_by_kind_and_their_versions(run: Run, web: FastAPI, names: list[str]) -> None:
    with web.state.services.db.write() as session:
        base_versions.record(session, [LoadedModel(BASE, "vllm", f"{BASE} 0.1.2", "f" * 64)])

    assert ids(run("families", "--json")) == [f"base:{BASE}", f"tuned_model:{FAMILY}"]
    assert ids(run("families", "--kind", "base", "--json")) == [f"base:{BASE}"]
    shown = output(run("families", f"base:{BASE}"))
    assert f"{BASE} 0.1.2" in shown
    assert "ffffffffffff " in shown
    versions = output(run("families", f"tuned_model:{FAMILY}"))
    assert [name in versions for name in names] == [True, True]


def test_version_is_shown_with_its_history(run: Run, names: list[str]) -> None:
    told = output(run("stage", names[0], "production", "--reason", "Fewer refusals."))
    output(run("update", names[0], "--semantic-version", "1.0.0", "--git-commit", "0a1b2c3"))

    shown = output(run("show", names[0]))

    assert told == f"version 1 of {FAMILY} is in the stage production"
    assert "semantic_version: 1.0.0\n" in shown
    assert "git_commit: 0a1b2c3\n" in shown
    assert shown.endswith("moved it from none to production: Fewer refusals.")
    assert json.loads(output(run("show", names[0], "--json")))["moves"][0]["reason"] == "Fewer refusals."


def test_second_version_in_production_has_to_be_asked_for(run: Run, names: list[str]) -> None:
    output(run("stage", names[0], "production"))

    refused = run("stage", names[1], "production")
    assert refused.exit_code == 1
    assert "archive_existing" in str(refused.exception)
    output(run("stage", names[1], "production", "--archive-existing"))
    assert ids(run("versions", "--stage", "archived", "--json")) == names[:1]


def test_lineage_is_drawn_with_parents_below_their_job(run: Run, names: list[str]) -> None:
    lines = output(run("lineage", names[1])).split("\n")

    assert lines[0] == f"{names[1]} ({FAMILY} 2): ready, none, SHA-256 000000000000"
    assert lines[1] == "  comes from"
    assert [line.split(": ")[0] for line in lines[2:]] == [
        "    result",
        "      base",
        "      training",
        "      parent",
        "        result",
        "          base",
        "          training",
    ]
    assert f"parent: {names[0]} ({FAMILY} 1)" in lines[5]


def test_comparison_shows_facts_that_differ(run: Run, names: list[str]) -> None:
    rows = {row["fact"]: row for row in map(json.loads, output(run("compare", *names, "--json")).split("\n"))}

    assert rows["seed"] == {"fact": "seed", "first": 0, "second": 1, "differs": True}
    assert rows["versions.torch"] == {
        "fact": "versions.torch", "first": "2.9.0", "second": "2.9.0", "differs": False
    }  # fmt: skip
    shown = output(run("compare", *names))
    assert "seed" in shown
    assert "versions.torch" not in shown
    assert "versions.torch" in output(run("compare", *names, "--all"))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Return the folder of an exported model."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text("{}")
    checkpoint_folder.seal(folder, {"step": 4})
    return folder


def test_exported_folder_is_verified_against_its_version(
    web: FastAPI, run: Run, names: list[str], exported: Path
) -> None:
    sha256 = hashlib.sha256((exported / "manifest.json").read_bytes()).hexdigest()
    with web.state.services.db.write() as session:
        session.execute(update(TunedModel).where(TunedModel.name == names[0]).values(sha256=sha256))

    assert output(run("verify", str(exported), "--model", names[0])).endswith(f"SHA-256 {sha256}")
    refused = run("verify", str(exported), "--model", names[1])
    assert "is not that of" in str(refused.exception)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("adapter_model.safetensors", b"Weights", "adapter_model.safetensors was changed"),
        ("adapter_config.json", None, "adapter_config.json is missing"),
        ("pickle.bin", b"code", "pickle.bin was added"),
        ("manifest.json", b"{}", "has no manifest.json of an exported model"),
    ],
)
def test_folder_that_was_tampered_with_is_refused(
    run: Run, exported: Path, name: str, content: bytes | None, fault: str
) -> None:
    if content is None:
        (exported / name).unlink()
    else:
        (exported / name).write_bytes(content)

    refused = run("verify", str(exported))

    assert refused.exit_code == 1
    assert fault in str(refused.exception)


def import_folder(web: FastAPI, run: Run, folder: Path, state: str, *words: str) -> Result:
    """Run the command while another thread ends the import with a state."""
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(eventually, lambda: end_import(web, state), 60, "there is an import")
        result = run("import", str(folder), *words)
        ended.result()
    return result


@pytest.mark.parametrize("part_bytes", [1 << 20, 100])
def test_import_uploads_folder_and_shows_version(
    web: FastAPI, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(server, "_PART_BYTES", part_bytes)
    folder = write_adapter(tmp_path / "adapter", None)

    shown = output(import_folder(web, run, folder, "succeeded", "--family", FAMILY, "--license", "mit"))

    assert f"is version 1 of {FAMILY}" in shown
    with web.state.services.db.read() as session:
        job = session.scalars(select(Job).where(Job.kind == model_imports.NAME)).one()
        assert sorted(job.payload["files"]) == sorted(path.name for path in folder.iterdir())
        files = session.scalars(select(File)).all()
        assert {file.filename for file in files} == set(job.payload["files"])
        assert all(file.deleted_at for file in files)
        assert session.scalars(select(ModelVersion.license)).all() == ["mit"]


def test_failed_import_ends_with_its_reason(web: FastAPI, run: Run, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", None)

    result = import_folder(web, run, folder, "failed", "--base", BASE)

    assert result.exit_code == 1
    assert "was not imported: It has the rank 64." in str(result.exception)


def test_folder_that_was_changed_or_names_no_base_is_not_uploaded(web: FastAPI, run: Run, tmp_path: Path) -> None:
    changed, unnamed = write_adapter(tmp_path / "a", None), write_adapter(tmp_path / "b", None)
    (changed / "chat_template.jinja").write_text("x")
    (unnamed / "adapter_config.json").write_text("{}")

    results = [run("import", str(changed), "--base", BASE), run("import", str(unnamed))]

    assert [result.exit_code for result in results] == [1, 1]
    assert "chat_template.jinja was changed" in str(results[0].exception)
    assert "name it with --base" in str(results[1].exception)
    with web.state.services.db.read() as session:
        assert session.scalars(select(File)).all() == []


def test_imported_version_is_not_reproduced(web: FastAPI, run: Run, names: list[str]) -> None:
    with web.state.services.db.write() as session:
        session.execute(update(TunedModel).where(TunedModel.name == names[0]).values(manifest={"imported": True}))

    result = run("reproduce", names[0])

    assert result.exit_code == 1
    assert "was imported" in str(result.exception)
