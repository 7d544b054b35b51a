"""Imports of models: an exported adapter becomes a version of another project, and answers there as it did before."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import func, select
from typer.testing import CliRunner

from cli.main import app as command
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.finetuning import model_imports
from jobs.finetuning.tables import ImportedFile
from jobs.ledger import kinds, ledger
from jobs.ledger.tables import Job
from jobs.registry.tables import ModelVersion, TunedModel
from jobs.security import keys
from jobs.usage import stored_bytes
from tests.support import random_adapters
from tests.support.eval_client import World, evaluating
from tests.support.exported_adapters import BASE, contents, write_adapter, write_base, write_models_file
from tests.support.inline_deployment import chat_line, jsonl
from tests.support.system import ROOT
from workers.engines.training import checkpoint_folder


def begin(client: OpenAI, folder: Path, **fields: Any) -> str:
    files = [
        {"name": path.name, "file_id": client.files.create(file=path, purpose="user_data").id}
        for path in sorted(folder.iterdir())
    ]
    made: Any = client.post("/model_imports", body={"base": BASE, "files": files} | fields, cast_to=object)
    return str(made["id"])


@dataclass
class Imports:
    """A client of imports, beside the worker of a world; `folder` has an adapter of `base`."""

    world: World
    base: Path
    folder: Path

    def begin(self, folder: Path, **fields: Any) -> str:
        """Upload a folder and begin its import; return the id."""
        return begin(self.world.client, folder, **fields)

    def ended(self, import_id: str) -> Any:
        self.world.inline.drain(import_id, timeout=60)
        return self.get(f"/model_imports/{import_id}")

    def get(self, path: str) -> Any:
        return self.world.client.get(path, cast_to=object)

    def answer(self, model: str, project: str = "default") -> str:
        """Return what a model answers to a line of a batch."""
        line = chat_line("parcel", "My parcel has not arrived.", model=model)
        [job] = self.world.inline.drain(self.world.inline.submit(jsonl([line]), project=project))
        [answered], _ = self.world.inline.results(job)
        return str(answered["response"]["body"]["choices"][0]["message"]["content"])

    def counts(self) -> tuple[int, ...]:
        """Return how many models, versions and files of models there are."""
        with self.world.inline.db.read() as session:
            tables = (TunedModel, ModelVersion, ImportedFile)
            return tuple(session.scalar(select(func.count()).select_from(table)) or 0 for table in tables)


@pytest.fixture
def imports(db: Database, tmp_path: Path) -> Iterator[Imports]:
    base = write_base(tmp_path / "base")
    file = write_models_file(tmp_path / "models.yaml", base)
    with evaluating(db, tmp_path / "data", models_file=str(file)) as world:
        yield Imports(world, base, write_adapter(tmp_path / "adapter", base))


def command_of(client: OpenAI, *words: str) -> Any:
    where = ["--url", str(client.base_url).removesuffix("/v1/"), "--api-key", client.api_key]
    return CliRunner().invoke(command, [*words[:2], *where, *words[2:]])


def test_imported_version_is_registered_with_its_origin_and_answers(imports: Imports) -> None:
    first = imports.ended(imports.begin(imports.folder, suffix="support", license="mit"))
    second = imports.ended(imports.begin(imports.folder, suffix="support", parent=first["model"]))

    name = second["model"]
    version = imports.get(f"/model_versions/{name}")
    sha256 = hashlib.sha256((imports.folder / "manifest.json").read_bytes()).hexdigest()
    facts = {
        "family": f"{BASE}:support", "number": 2, "stage": "none", "state": "ready", "parent": first["model"],
        "model_import": second["id"], "fine_tuning_job": None, "sha256": sha256, "license": "apache-2.0",
        "method": "lora", "bytes": sum(map(len, contents().values())),
    }  # fmt: skip
    assert {field: version[field] for field in facts} == facts
    assert imports.get(f"/model_versions/{first['model']}")["license"] == "mit"
    assert version["manifest"]["run"]["step"] == 4
    lineage = imports.get(f"/model_versions/{name}/lineage")
    assert {(node["id"], node["type"]) for node in lineage["nodes"]} >= {(second["id"], "model.import")}
    assert imports.world.told(second["id"]) == ["model.import.succeeded"]
    assert imports.answer(name).startswith(f"lora-{sha256[:16]} ")
    assert imports.world.client.models.delete(name).deleted
    with imports.world.inline.db.read() as session:
        [(_, sizes)] = stored_bytes.bytes_by_project(session).items()
    assert sizes["imported_models"] > 0


def test_exported_folder_comes_back_into_another_project_with_same_bytes_and_answers(
    imports: Imports, tmp_path: Path
) -> None:
    world = imports.world
    source = imports.ended(imports.begin(imports.folder))["model"]
    exported = tmp_path / "exported"
    assert command_of(world.client, "finetune", "export", source, "--output", str(exported)).exit_code == 0
    assert sorted(path.name for path in exported.iterdir()) == sorted([*contents(), "manifest.json"])
    other = other_client(world)
    import_id = begin(other, exported)
    world.inline.drain(import_id, timeout=60)

    made: Any = other.get(f"/model_imports/{import_id}", cast_to=object)
    name = made["model"]
    versions: Any = [
        client.get(f"/model_versions/{model}", cast_to=object)
        for client, model in ((world.client, source), (other, name))
    ]
    assert versions[0]["sha256"] == versions[1]["sha256"]
    assert versions[0]["manifest"]["files"] == versions[1]["manifest"]["files"]
    assert imports.answer(source) == imports.answer(name, "strangers")
    listed: Any = other.get("/model_versions", cast_to=object)
    assert [version["id"] for version in listed["data"]] == [name]


def other_client(world: World) -> OpenAI:
    with world.inline.db.write() as session:
        key = keys.create_key(session, "strangers")
    return OpenAI(base_url=str(world.client.base_url), api_key=key, max_retries=0)


def test_failed_import_says_why_and_registers_nothing(imports: Imports, tmp_path: Path) -> None:
    other_base = write_base(tmp_path / "other", b"\2")
    tampered = write_adapter(tmp_path / "tampered", imports.base)
    (tampered / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    folders = {
        "adapter_config.json was changed": tampered,
        "trained on another base": write_adapter(tmp_path / "foreign", other_base),
        "serves 16 at most": write_adapter(tmp_path / "ranked", imports.base, contents(r=64)),
    }

    for expected, folder in folders.items():
        ended = imports.ended(imports.begin(folder))
        assert (ended["status"], ended["model"], ended["error"]["code"]) == ("failed", None, "invalid_model")
        assert expected in ended["error"]["message"]
        assert imports.world.told(ended["id"]) == ["model.import.failed"]
    assert imports.counts() == (0, 0, 0)
    assert imports.world.inline.storage.list("imports") == []


def test_import_that_is_cancelled_registers_nothing(imports: Imports) -> None:
    imports.world.inline.lose_messages = lambda task: task == "plan"
    import_id = imports.begin(imports.folder)
    imports.world.client.post(f"/model_imports/{import_id}/cancel", cast_to=object)

    assert imports.ended(import_id)["status"] == "cancelled"
    assert imports.counts() == (0, 0, 0)


def test_repeated_work_registers_single_version(imports: Imports, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off: list[str] = []

    def cut(name: str, module: Any) -> None:
        real = getattr(module, name)

        def once(*args: Any, **kwargs: Any) -> Any:
            if name not in cut_off:
                cut_off.append(name)
                raise RuntimeError("the worker is killed")
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, once)

    cut("begin_running", ledger)  # all is checked, and nothing is noted
    cut("register", model_imports)  # all is copied and the job is closed, in a transaction that never commits

    ended = imports.ended(imports.begin(imports.folder))

    assert sorted(cut_off) == ["begin_running", "register"]
    assert ended["status"] == "succeeded"
    assert imports.counts() == (1, 1, 3 + 1)
    stored = imports.world.inline.storage.list(f"imports/{ended['id']}")
    assert sorted(path.rpartition("/")[2] for path in stored) == sorted(path.name for path in imports.folder.iterdir())


def test_files_of_client_may_go_once_import_has_ended(imports: Imports) -> None:
    ended = imports.ended(imports.begin(imports.folder))

    with imports.world.inline.db.read() as session:
        assert session.scalars(select(File.id).where(kinds.is_read(File.id))).all() == []
    for file_id in ended["files"].values():
        imports.world.client.files.delete(file_id)
    assert imports.answer(ended["model"]).startswith("lora-")


def test_import_waits_for_missing_base(imports: Imports) -> None:
    away = imports.base.rename(imports.base.with_name("elsewhere"))
    import_id = imports.begin(imports.folder)

    imports.world.inline.until(lambda: imports.world.inline.job(import_id).waiting_for == "model", 60)
    away.rename(imports.base)
    with imports.world.inline.db.read() as session:
        assert session.get_one(Job, import_id).state == "queued"


_PEFT = """
import sys, torch, transformers, peft
base, folder = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
tuned = peft.PeftModel.from_pretrained(model, folder)
print(len([name for name, _ in tuned.named_parameters() if "lora_" in name]))
"""


@pytest.mark.verify
@pytest.mark.timeout(600)
def test_real_adapter_is_imported_and_its_export_is_opened_by_peft(sqlite: Database, tmp_path: Path) -> None:
    base, folder = tmp_path / "llama", tmp_path / "adapter"
    making = [sys.executable, "-m", "tests.support.tiny_llama", str(base)]
    subprocess.run(making, check=True, cwd=ROOT, timeout=300)
    random_adapters.make(base, [folder])
    (folder / "probes.json").unlink()  # the fake engine has other tokens
    checkpoint_folder.seal(folder, {"step": 4, "peft": "lora"})
    file = write_models_file(tmp_path / "models.yaml", base)
    with evaluating(sqlite, tmp_path / "data", models_file=str(file)) as world:
        imports = Imports(world, base, folder)
        ended = imports.ended(imports.begin(folder))
        assert ended["status"] == "succeeded", ended
        exported = tmp_path / "exported"
        assert command_of(world.client, "finetune", "export", ended["model"], "--output", str(exported)).exit_code == 0

    opened = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PEFT, str(base), str(exported)],
        check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert int(opened.stdout.split()[-1]) == 2 * 7 * 2  # two matrices for each of seven layers, twice
