"""Every kind of job, put into the ledger's table: what a process imports that moves jobs."""

from typing import Final

from jobs.batches import batches
from jobs.evals import runs
from jobs.finetuning import jobs as finetuning
from jobs.inference import responses
from jobs.ledger import kinds
from jobs.ledger.events import OTHER_TYPES
from jobs.retrieval import ingestions

kinds.register(
    *batches.KINDS, responses.RESPONSE, ingestions.INGESTION, finetuning.FINETUNING, runs.EVALUATION, runs.SAMPLING_KIND
)

#: The types of events that webhooks may subscribe to, each with the prefix of the ids of what it tells of.
EVENT_TYPES: Final = kinds.event_types() | OTHER_TYPES
