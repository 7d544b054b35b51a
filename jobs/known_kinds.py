"""Every kind of job, put into the ledger's table: what a process imports that moves jobs."""

from dataclasses import replace
from typing import Final

from jobs.batches import batches
from jobs.datasets.dataset_versions import DATASET
from jobs.evals.run_kinds import EVALUATION, SAMPLING
from jobs.finetuning.jobs import FINETUNING
from jobs.finetuning.model_imports import MODEL_IMPORT
from jobs.inference.responses import RESPONSE
from jobs.ledger import kinds
from jobs.ledger.events import OTHER_TYPES
from jobs.monitoring import monitors
from jobs.pipelines import pipelines
from jobs.promotions.promotions import PROMOTION
from jobs.retrieval.ingestion_kind import INGESTION
from jobs.usage import minutes

_ROWS: Final = (
    *batches.KINDS,
    RESPONSE,
    INGESTION,
    FINETUNING,
    MODEL_IMPORT,
    EVALUATION,
    SAMPLING,
    DATASET,
    PROMOTION,
    monitors.KIND,
    *pipelines.KINDS,
)
kinds.register(*(replace(row, record_segment=minutes.record_segment) for row in _ROWS))

#: The types of events that webhooks may subscribe to, each with the prefix of the ids of what it tells of.
EVENT_TYPES: Final = kinds.event_types() | OTHER_TYPES
