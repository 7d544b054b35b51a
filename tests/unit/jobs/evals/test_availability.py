"""The live workers show what a deployment can grade."""

from pathlib import Path

import pytest

from jobs.clock import now
from jobs.db.engine import Database
from jobs.evals.availability import deployment_of, ports_of
from jobs.fleet import workers
from jobs.fleet.models_file import Registry
from jobs.fleet.tables import Worker
from jobs.settings import Settings
from tests.support.worker_rows import worker_row


def worker(queue: str, lacks: list[str] | None, name: str = "cpu-1") -> Worker:
    return worker_row(name, queue, heartbeat=1, created_at=now(), seen_at=now(), sandbox_lacks=lacks)


@pytest.mark.parametrize(
    ("lacks", "queue", "runs"),
    [
        ([[]], "cpu.evaluate", True),
        ([["landlock"], []], "cpu.evaluate", True),
        ([["landlock"]], "cpu.evaluate", False),
        ([["landlock"], None], "cpu.evaluate", None),
        ([None], "cpu.evaluate", None),
        ([[]], "cpu.plan", None),
        ([], "", None),
    ],
)
def test_python_graders_run_where_a_live_worker_has_the_whole_sandbox(
    db: Database, tmp_path: Path, lacks: list[list[str] | None], queue: str, runs: bool | None
) -> None:
    """None: a worker that has not said what it lacks, or one that is still to come, may have it."""
    config = Settings(data_dir=tmp_path)
    with db.write() as session:
        for number, parts in enumerate(lacks):
            workers.register(session, worker(queue, parts, f"cpu-{number}"))
    with db.read() as session:
        deployment = deployment_of(session, config, Registry.load(config))
    assert deployment.runs_python is runs


def test_wordnet_is_where_the_setting_says(db: Database, tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text("")
    for folder, is_there in ((tmp_path, True), (tmp_path / "elsewhere", False)):
        config = Settings(data_dir=tmp_path, wordnet=str(folder))
        registry = Registry.load(config)
        with db.read() as session:
            assert deployment_of(session, config, registry).has_wordnet is is_there
        assert (ports_of(config, registry).wordnet is not None) is is_there
        assert ports_of(config, registry).embedding_model == registry.embedder("")


@pytest.mark.parametrize(
    ("engine", "encodes"),
    [("{packaged: all-minilm-l6-v2}, engine: embed", True), ("{urls: [http://h]}, engine: http", False)],
)
def test_tokens_are_encoded_by_a_model_of_the_deployments_own(
    db: Database, tmp_path: Path, engine: str, encodes: bool
) -> None:
    models_file = tmp_path / "models.yaml"
    models_file.write_text(f"models:\n  m: {{source: {engine}, endpoints: [/v1/embeddings], aliases: [other]}}\n")
    for name in ("m", "other"):
        config = Settings(data_dir=tmp_path, models_file=str(models_file), embedding_model=name)
        with db.read() as session:
            assert deployment_of(session, config, Registry.load(config)).encodes_tokens is encodes
