"""Which graders this deployment can run. A grader that it cannot run is refused when it is created."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy.orm import Session

from jobs.errors import InvalidRequest
from jobs.evals.graders import Grader, JsonSchemaMatch, PythonGrader, Single, TextSimilarity, singles
from jobs.evals.grading import Ports, RunPython
from jobs.evals.text_metrics import DEBIAN_WORDNET, open_wordnet
from jobs.fleet import workers
from jobs.fleet.models_file import EngineKind, Registry
from jobs.queues import Queue
from jobs.settings import Settings


@dataclass(frozen=True, slots=True)
class Deployment:
    """The parts that some graders need. Without `embedding_model` no model makes embeddings.

    `encodes_tokens`: that model is one of this deployment's own, which also gives the embeddings of tokens.
    """

    runs_python: bool = False
    has_wordnet: bool = False
    embedding_model: str | None = None
    encodes_tokens: bool = False


def deployment_of(session: Session, config: Settings, registry: Registry) -> Deployment:
    """Return what this deployment has now, as the live workers of `cpu.evaluate` show it."""
    graders = workers.alive(session, Queue.EVALUATE)
    model = registry.embedder(config.embedding_model)
    configured = registry.models.get(registry.aliases.get(model or "", model or ""))
    return Deployment(
        runs_python=any(worker.sandbox_lacks == [] for worker in graders),
        has_wordnet=_wordnet(config) is not None,
        embedding_model=model,
        encodes_tokens=configured is not None and configured.engine is EngineKind.EMBED,
    )


def ports_of(config: Settings, registry: Registry, run_python: RunPython | None = None) -> Ports:
    """Return what this process has to grade with."""
    folder = _wordnet(config)
    return Ports(
        embedding_model=registry.embedder(config.embedding_model),
        run_python=run_python,
        wordnet=partial(open_wordnet, folder) if folder else None,
    )


def _wordnet(config: Settings) -> Path | None:
    """Return the folder of WordNet; None where there is none."""
    folder = Path(config.wordnet) if config.wordnet else DEBIAN_WORDNET
    return folder if (folder / "data.noun").exists() else None


def check_available(grader: Grader, deployment: Deployment, param: str) -> None:
    """Check that the deployment can run a grader, which the field `param` of a request defines.

    Raises: InvalidRequest.
    """
    for single in singles(grader):
        _check(single, deployment, param)


def _check(grader: Single, deployment: Deployment, param: str) -> None:
    metric = grader.evaluation_metric if isinstance(grader, TextSimilarity) else None
    if isinstance(grader, PythonGrader | JsonSchemaMatch) and not deployment.runs_python:
        message = "No worker of this deployment has the sandbox that this grader runs in: see `nightmill doctor`."
        raise InvalidRequest(message, param=param, code="sandbox_unavailable")
    if metric == "meteor" and not deployment.has_wordnet:
        message = "The metric 'meteor' needs WordNet: install Debian's wordnet-base, or set NIGHTMILL_WORDNET."
        raise InvalidRequest(message, param=param, code="grader_unavailable")
    if metric == "bertscore" and not deployment.encodes_tokens:
        message = "The metric 'bertscore' needs an embedding model of this deployment's own, and there is none."
        raise InvalidRequest(message, param=param, code="grader_unavailable")
    if metric == "cosine" and deployment.embedding_model is None:
        message = "The metric 'cosine' needs a model for embeddings, and this deployment has none."
        raise InvalidRequest(message, param=param, code="grader_unavailable")
