"""MLflow's registry: a registered model for each family, and in it each version with its stage.

    event ─▶ the version as it is now ─▶ found by its tag, or created ─▶ its tags ─▶ the aliases `staging`, `production`

MLflow's own stages are deprecated: a stage is a tag, and an alias of its name on the version that moved there last.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.finetuning import jobs, tracking
from jobs.finetuning.tables import FinetuneData, FinetuneTracking
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.registry import models
from jobs.registry.model_versions import STAGED
from jobs.registry.tables import ModelVersion, TunedModel
from jobs.security.tables import Project
from jobs.settings import Settings
from jobs.webhooks.tables import Event
from workers.finetuning.mlflow_server import MlflowRefused, MlflowServer, open_server, pairs
from workers.finetuning.tracked_run import TrackingFailed
from workers.sinks.sink import EventRefused, SinkUnavailable

_ID: Final = "nightmill_id"
_ALIASES: Final = ("staging", "production")
_MAX_NAME: Final = 256


@dataclass(frozen=True, slots=True)
class _Version:
    """A version as MLflow is to show it. `run_id` is that of the run of its training, where one was tracked."""

    name: str
    stage: str
    source: str
    run_id: str | None
    tags: dict[str, str]
    family_tags: dict[str, str]


class MlflowRegistry:
    """The registry of a server of MLflow."""

    name = "mlflow"

    def __init__(self, config: Settings) -> None:
        self._config = config

    def send(self, db: Database, event: Event) -> bool:
        """See `FeedSink`. A version that was created by a request whose answer was lost is found by its tag."""
        with db.read() as session:
            version = _version_of(session, event)
        if version is None:
            return False
        try:
            with open_server(self._config) as server:
                _set_aliases(server, version, _write_version(server, version))
        except MlflowRefused as error:
            raise EventRefused(str(error)) from error
        except TrackingFailed as error:
            raise SinkUnavailable(str(error)) from error
        return True


def _version_of(session: Session, event: Event) -> _Version | None:
    """Return the version that an event made or moved, as it is now; None for any other event."""
    name = event.data.get("model") if event.type == STAGED else _result(session, event)
    tuned = session.scalar(select(TunedModel).where(TunedModel.name == name)) if name else None
    version = session.get(ModelVersion, name) if tuned is not None else None
    if tuned is None or version is None:
        return None
    project = session.get_one(Project, version.project_id)
    tracked = session.get(FinetuneTracking, (tuned.job_id, tracking.MLFLOW))
    tags = {
        _ID: tuned.id,
        "nightmill_model": tuned.name,
        "nightmill_sha256": tuned.sha256,
        "nightmill_job_id": tuned.job_id,
        "nightmill_number": str(version.number),
        "nightmill_stage": version.stage,
        "nightmill_base": tuned.base,
        "nightmill_dataset": _data_of(session, tuned.job_id),
    }
    return _Version(
        name=_name_of(project.name, version.family),
        stage=version.stage,
        source=f"nightmill://models/{tuned.id}",
        run_id=tracked.run_id if tracked is not None else None,
        tags={key: value for key, value in tags.items() if value},
        family_tags={"nightmill_project": project.name, "nightmill_family": version.family},
    )


def _result(session: Session, event: Event) -> str | None:
    """Return the model of the fine-tuning job whose success an event tells of."""
    job = session.get(Job, event.subject_id)
    if job is None or job.kind != jobs.NAME or job.state != JobState.SUCCEEDED or event.seq != job.event_seq:
        return None
    return models.results(session, [job.id]).get(job.id)


def _data_of(session: Session, job_id: str) -> str:
    """Return the datasets that a training read, or the ids of its files."""
    job = session.get(Job, job_id)
    references = job.payload.get("datasets", {}).values() if job is not None else ()
    files = session.scalars(select(FinetuneData.file_id).where(FinetuneData.job_id == job_id))
    return ", ".join(sorted({*(references or files)}))


def _name_of(project: str, family: str) -> str:
    """Return the name of a family's registered model, which has no slash and no colon."""
    name = quote(f"{project}:{family}", safe=" ")
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 17]}-{sha256(name.encode()).hexdigest()[:16]}"


def _write_version(server: MlflowServer, version: _Version) -> dict[str, Any]:
    """Create a version, or bring its tags up to date; return what identifies it."""
    search = {"filter": f"tags.{_ID} = '{version.tags[_ID]}'", "max_results": 1}
    for known in server.get("model-versions/search", search).get("model_versions", ()):
        key = {"name": known["name"], "version": known["version"]}
        had = {tag["key"]: tag["value"] for tag in known.get("tags", ())}
        for name, value in version.tags.items():
            if had.get(name) != value:
                server.post("model-versions/set-tag", {**key, "key": name, "value": value})
        return key
    if not server.get("registered-models/get", {"name": version.name}, missing=True):
        server.post("registered-models/create", {"name": version.name, "tags": pairs(version.family_tags)})
    new = {"name": version.name, "source": version.source, "tags": pairs(version.tags)}
    new |= {"run_id": version.run_id} if version.run_id else {}
    created = server.post("model-versions/create", new)["model_version"]
    return {"name": created["name"], "version": created["version"]}


def _set_aliases(server: MlflowServer, version: _Version, key: dict[str, Any]) -> None:
    """Point the alias of the stage at a version, and take those of other stages from it."""
    model = server.get("registered-models/get", {"name": key["name"]})["registered_model"]
    holders = {alias["alias"]: alias["version"] for alias in model.get("aliases", ())}
    for alias in _ALIASES:
        holds = holders.get(alias) == key["version"]
        if version.stage == alias and not holds:
            server.post("registered-models/alias", {**key, "alias": alias})
        elif version.stage != alias and holds:
            server.delete("registered-models/alias", {"name": key["name"], "alias": alias})
