"""Fine-tuning jobs as their clients know them, and what must be true of them.

    Tuning     a job: its key, its seed, the models and checkpoints that its client saw
    Answered   an answer, and the model that was asked for

`judge` looks through HTTP alone; `stored` looks at the rows and the files of a deployment from inside.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose

from openai import OpenAI
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.errors import NotFound
from jobs.finetuning.tables import FinetuneCheckpoint, FinetuneStep
from jobs.platform.storage import Storage
from jobs.registry.manifests import MANIFEST, RESUME, decode_manifest
from jobs.registry.models import READY
from jobs.registry.tables import TunedModel
from tests.support.fake_engine import VOICE
from tests.support.fake_trainer import loss_of, weights_of
from tests.support.idle_workers import BASE
from tests.support.oracle import Told, told_once
from workers.finetuning.results import HEADER

EPOCHS, BATCH, _ROWS = 2, 2, 20
STEPS = EPOCHS * _ROWS // BATCH
ROWS = b"".join(
    json.dumps(
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"it is {n}."}]}
    ).encode()
    + b"\n"
    for n in range(_ROWS)
)
_DONE = "The job has successfully completed"


@dataclass(slots=True)
class Tuning:
    """A fine-tuning job. `models` are names of its result and its checkpoints, each with its step."""

    key: str
    seed: int
    id: str = ""
    cancelled: bool = False
    status: str = ""
    ended: bool = False
    models: dict[str, int] = field(default_factory=dict)
    result: str = ""  # the one of them that is no checkpoint


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer: the model that was asked for, the model that it names, and its text."""

    model: str
    named: str
    prompt: str
    text: str


def answered(answers: Iterable[Answered], tunings: Iterable[Tuning]) -> Iterator[str]:
    """Yield the answers that another adapter gave, or that name another model."""
    voices = {name: weights_of(tuning.seed, step) for tuning in tunings for name, step in tuning.models.items()}
    voices[BASE] = VOICE
    for answer in answers:
        if answer.named != answer.model:
            yield f"{answer.model} was asked for, and {answer.named} answered"
        if answer.text.split(" ")[0] != voices[answer.model]:
            yield f"{answer.model}: {answer.prompt!r} was answered with {answer.text!r}, not by {voices[answer.model]}"


def judge(client: OpenAI, tuning: Tuning) -> Iterator[str]:
    """Yield what is wrong with a job that has ended, as its client sees it."""
    same = list(client.fine_tuning.jobs.list(metadata={"key": tuning.key}))
    if [job.id for job in same] != [tuning.id]:
        yield f"{tuning.key} is {tuning.id}, and these jobs have its key: {[job.id for job in same]}"
        return
    [job] = same
    if job.status != "succeeded" and not (tuning.cancelled and job.status == "cancelled"):
        yield f"{tuning.key} {job.status}: {job.error}"
    if job.status != "succeeded":
        return
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    if messages.count(_DONE) != 1 or messages[0] != _DONE:
        yield f"{tuning.key}: its end was told {messages.count(_DONE)} times, the last event is {messages[0]!r}"
    contents = [client.files.content(name).content for name in job.result_files]
    tables = [data for data in contents if data.startswith(HEADER.encode())]
    if len(tables) != 1:
        yield f"{tuning.key}: {len(tables)} of its result files {job.result_files} are tables of its steps"
        return
    rows = list(csv.DictReader(io.StringIO(tables[0].decode())))
    yield from losses(tuning, {int(row["step"]): float(row["train_loss"]) for row in rows}, len(rows))
    if not job.fine_tuned_model or client.models.retrieve(job.fine_tuned_model).id != job.fine_tuned_model:
        yield f"{tuning.key}: there is no model {job.fine_tuned_model}"


def told(tuning: Tuning, hooks: Iterable[Told]) -> list[str]:
    """Return why the end of a job was not told as one event, under one webhook-id."""
    return told_once(tuning.key, tuning.id, tuning.status, f"fine_tuning.job.{tuning.status}", hooks)


def losses(tuning: Tuning, found: Mapping[int, float], count: int) -> Iterator[str]:
    """Yield the steps that are missing, there twice, or of another training."""
    if count != len(found) or sorted(found) != list(range(1, STEPS + 1)):
        yield f"{tuning.key}: its {count} steps are {sorted(found)}, not 1 to {STEPS}, each once"
    wrong = [step for step, loss in found.items() if not isclose(loss, loss_of(tuning.seed, step))]
    if wrong:
        yield f"{tuning.key}: the losses of steps {wrong} are not those of its training"


def stored(db: Database, storage: Storage, tunings: Sequence[Tuning]) -> Iterator[str]:
    """Yield rows of steps, checkpoints and models that are not what the storage has."""
    for tuning in tunings:
        with db.read() as session:
            steps = session.scalars(select(FinetuneStep).where(FinetuneStep.job_id == tuning.id)).all()
            saved = session.scalars(select(FinetuneCheckpoint).where(FinetuneCheckpoint.job_id == tuning.id)).all()
            models = session.scalars(select(TunedModel).where(TunedModel.job_id == tuning.id)).all()
        if tuning.status == "succeeded":
            yield from losses(tuning, {row.step: row.train_loss for row in steps}, len(steps))
            yield from _models(tuning, saved, models)
        for row in saved:
            yield from _checkpoint(storage, tuning, row)


def _models(tuning: Tuning, saved: Sequence[FinetuneCheckpoint], models: Sequence[TunedModel]) -> Iterator[str]:
    last = max(saved, key=lambda row: row.step)
    results = [model for model in models if model.checkpoint_step is None]
    if [(model.state, model.location, model.sha256) for model in results] != [(READY, last.location, last.sha256)]:
        yield f"{tuning.key}: its results are {[(model.name, model.state, model.location) for model in results]}"
    known = {row.step: row.sha256 for row in saved}
    for model in models:
        if model.checkpoint_step is not None and known.get(model.checkpoint_step) != model.sha256:
            yield f"{tuning.key}: {model.name} is not the checkpoint of its step"


def _checkpoint(storage: Storage, tuning: Tuning, row: FinetuneCheckpoint) -> Iterator[str]:
    """Yield why a checkpoint that a row names is not whole, or not of its job."""
    faults = list(whole(storage, row))
    yield from (f"{tuning.key}: {fault}" for fault in faults)
    if not faults:
        weights = _read(storage, f"{row.location}/adapter_model.safetensors").decode()
        if weights != weights_of(tuning.seed, row.step):
            yield f"{tuning.key}, checkpoint {row.step}: its weights are {weights}"


def whole(storage: Storage, row: FinetuneCheckpoint) -> Iterator[str]:
    """Yield why a checkpoint that a row names is not whole: files that are missing, or have other bytes."""
    name = f"checkpoint {row.step} at {row.location}"
    try:
        data = _read(storage, f"{row.location}/{MANIFEST}")
        if hashlib.sha256(data).hexdigest() != row.sha256:
            yield f"{name}: its manifest is not the one that its row names"
            return
        for file, expected in decode_manifest(data).files.items():
            if file in RESUME and not row.keeps_optimizer:
                continue
            if hashlib.sha256(_read(storage, f"{row.location}/{file}")).hexdigest() != expected.sha256:
                yield f"{name}: {file} is not the file that its manifest names"
    except NotFound as error:
        yield f"{name}: {error}"


def _read(storage: Storage, path: str) -> bytes:
    with storage.reader(path) as handle:
        data: bytes = handle.read()
        return data
