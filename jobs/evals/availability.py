"""The graders that this deployment can run. A grader that it can never run is refused when it is created."""

from functools import partial
from pathlib import Path

from sqlalchemy.orm import Session

from jobs.errors import InvalidRequest, Unavailable
from jobs.evals.graders import Grader
from jobs.evals.graders.base import GradingParts, Ports, RunPython
from jobs.evals.text_metrics import DEBIAN_WORDNET, open_wordnet
from jobs.fleet import workers
from jobs.fleet.models_file import EngineKind, Registry
from jobs.queues import Queue
from jobs.settings import Settings


def deployment_of(session: Session, config: Settings, registry: Registry) -> GradingParts:
    """Return what this deployment has, as far as the workers of `cpu.evaluate` have said."""
    model = registry.embedder(config.embedding_model)
    configured = registry.models.get(registry.aliases.get(model or "", model or ""))
    return GradingParts(
        runs_python=_runs_python(session),
        has_wordnet=_wordnet(config) is not None,
        embedding_model=model,
        encodes_tokens=configured is not None and configured.engine is EngineKind.EMBED,
    )


def _runs_python(session: Session) -> bool | None:
    """Return whether a worker has the whole sandbox; None while none has, and one may: it has not looked yet."""
    lacking = [worker.sandbox_lacks for worker in workers.present(session) if Queue.EVALUATE in worker.queues]
    if [] in lacking:
        return True
    return False if lacking and None not in lacking else None


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


def check_available(grader: Grader, deployment: GradingParts, param: str, *, waits: bool = False) -> None:
    """Check that the deployment can run a grader, which the field `param` of a request defines.

    With `waits` a part that a worker may still have is no reason to refuse: what the grader is for waits for it.

    Raises: InvalidRequest; Unavailable, where a worker may have the missing part in a moment.
    """
    missing = grader.missing(deployment)
    if missing is None or (missing.is_temporary and waits):
        return
    refusal = Unavailable if missing.is_temporary else InvalidRequest
    raise refusal(missing.message, param=param, code=missing.code)
