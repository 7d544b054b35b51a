"""The workers' half of the table of kinds: how the jobs of each kind are planned, run and finished.

    jobs.known_kinds   what the ledger, the API and the dispatcher know of a kind
    HANDLERS           what a worker does for it; `workers.lifecycle` claims, calls the handler and records the end

Every function raises Abandoned where the work has to wait, ClaimLost where the claim was lost, StorageFull,
StorageUnavailable.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import jobs.known_kinds  # noqa: F401 (fills the table that every move of a job looks at)
from jobs.batches import batches
from jobs.evals import runs
from jobs.finetuning import jobs as tuning
from jobs.inference import responses
from jobs.ledger.kinds import UnknownKind
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim
from jobs.ledger.tables import Job
from jobs.retrieval import ingestions
from workers.batches import finishing, planning
from workers.batches.running import LineRun
from workers.evals import evaluation, sampling
from workers.finetuning import results, training_plan
from workers.finetuning.training_run import TrainingRun
from workers.inference import background_responses
from workers.retrieval.ingestion import job as ingestion
from workers.retrieval.ingestion.index import Indexing
from workers.retrieval.ingestion.parse import Parsing
from workers.retrieval.parsing.parser import Parser
from workers.runtime.attempts import ShardRun
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost
from workers.runtime.heartbeat import ClaimHandle


@dataclass(frozen=True, slots=True)
class Handler:
    """The functions of a worker for the jobs of a kind.

    `run` makes the run of one shard on an engine; it resumes after the lines that its claim says are covered. `parse`
    makes the run of a shard's first stage, in the pool `cpu`, and `grade` that of a shard of an evaluation, in the pool
    `evaluate`. `train` makes the run of a job's training, in a process that trains. `tend` comes after each attempt to
    finish a job.
    """

    plan: Callable[[Context, JobClaim, ClaimHandle], None]
    run: Callable[[Context, EngineHost, ShardClaim, ClaimHandle], ShardRun] | None
    finish: Callable[[Context, JobClaim, ClaimHandle], None]
    parse: Callable[[Context, Parser, ShardClaim, ClaimHandle], ShardRun] | None = None
    grade: Callable[[Context, ShardClaim, ClaimHandle], ShardRun] | None = None
    train: Callable[[Context, ShardClaim, ClaimHandle], ShardRun] | None = None
    tend: Callable[[Context, Job], None] | None = None


_BATCH: Final = Handler(planning.plan, LineRun, finishing.finish)

HANDLERS: Final[dict[str, Handler]] = {
    **dict.fromkeys(batches.NAMES, _BATCH),
    responses.KIND: Handler(planning.plan, background_responses.ResponseRun, background_responses.respond),
    tuning.NAME: Handler(training_plan.plan, None, results.finish, train=TrainingRun),
    runs.NAME: Handler(evaluation.plan, None, evaluation.finish, grade=evaluation.GradingRun),
    runs.SAMPLING: Handler(sampling.plan, sampling.SamplingRun, sampling.finish),
    ingestions.NAME: Handler(ingestion.plan, Indexing, ingestion.conclude, Parsing, tend=ingestion.tend),
}


def handler_of(job: Job) -> Handler:
    """Return the handler of a job. Raises UnknownKind."""
    if (handler := HANDLERS.get(job.kind)) is None:
        raise UnknownKind(f"This version runs no jobs of kind '{job.kind}'.")
    return handler
