"""Fine-tuning on PostgreSQL, RabbitMQ and S3: the packaged model, an adapter, twelve steps of real rows."""

import csv
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import select

from bench import tuning
from bench.deployment import Deployment, deployed
from jobs.finetuning.tables import FinetuneCheckpoint
from jobs.settings import Settings
from tests.chaos.inside import inside
from tests.contract.test_vllm_engine import MODELS
from tests.support import tuning_oracle
from tests.support.distributed import Servers, servers
from tests.support.services import need
from workers.engines.model_folders import SMOLLM2, materialise
from workers.finetuning.results import HEADER

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900), pytest.mark.distributed]
STEPS = 12


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Servers]:
    entering = ExitStack()
    try:
        started = entering.enter_context(servers(tmp_path / "servers"))
    except Exception as error:  # noqa: BLE001 (any error of its start says that this machine lacks a server)
        entering.close()
        need("one of PostgreSQL, RabbitMQ and S3", error)
    with entering:
        yield started


@pytest.fixture
def inline(tmp_path: Path, shared: Servers) -> Iterator[Deployment]:
    materialise(SMOLLM2, MODELS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "models").symlink_to(MODELS)
    with deployed(tmp_path, ("web", "dispatcher", "cpu", "finetune"), (), shared.variables) as inline:
        yield inline


def test_packaged_model_is_trained_on_postgresql_and_s3(tmp_path: Path, shared: Servers, inline: Deployment) -> None:
    lines = tuning.rows(STEPS * tuning.BATCH)
    events: list[str] = []

    job = tuning.train(inline, lines, "s3", lambda event: events.append(event.message))

    assert events[-1] == "The job has successfully completed"
    contents = [inline.client.files.content(name).content for name in job.result_files]
    [data] = [data for data in contents if data.startswith(HEADER.encode())]
    table = list(csv.DictReader(data.decode().splitlines()))
    assert [int(row["step"]) for row in table] == list(range(1, STEPS + 1))
    losses = [float(row["train_loss"]) for row in table]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert any(b"<svg" in data for data in contents)
    assert job.fine_tuned_model
    assert inline.client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    config = Settings(
        data_dir=tmp_path / "data",
        database_url=shared.database,
        storage_url=shared.variables["NIGHTMILL_STORAGE_URL"],
    )
    with inside(config, shared) as stores:
        with stores.db.read() as session:
            saved = session.scalars(select(FinetuneCheckpoint).where(FinetuneCheckpoint.job_id == job.id)).all()
        assert max(row.step for row in saved) == STEPS
        assert [fault for row in saved for fault in tuning_oracle.whole(stores.storage, row)] == []
