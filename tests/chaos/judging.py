"""Judge the state of vector stores after a run: through HTTP, then from inside, when nothing is pending any more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from openai import OpenAI

from jobs.ledger.slot_weights import SLOTS
from jobs.retrieval.attachments import AGAIN_SECONDS
from jobs.settings import Settings
from tests.chaos.faults import ALL_FAULTS
from tests.chaos.inside import Inside, inside
from tests.chaos.job_clients import JobClients
from tests.chaos.repeaters import TEXTS
from tests.support import oracle, store_oracle
from tests.support.store_oracle import KnownStore
from tests.support.stub_engine import text_mark
from tests.support.system import wait_for
from workers.retrieval.ingestion.index import CHUNKS_AT_ONCE

if TYPE_CHECKING:
    from tests.chaos.campaign import Campaign

_SETTLE_SECONDS = 90.0
_JOB_SECONDS = 120.0
_PURGE_SECONDS = AGAIN_SECONDS + 30.0


def await_jobs(campaign: "Campaign", clients: JobClients[Any], fault: str) -> None:
    """I1: every job of these clients that was accepted ends; `fault` says what has not happened in time."""
    if not clients.await_idle(_JOB_SECONDS * campaign.patience):
        late = ", ".join(f"{job.key} {job.status}" for job in clients.open)
        campaign.journal.violation(f"I1: {fault}: {late}")


def await_settled(campaign: "Campaign") -> None:
    """I1: every file that was brought in comes in, or is refused."""
    store_clients = campaign.load.store_clients
    if not store_clients.await_settled(_SETTLE_SECONDS * campaign.patience):
        late = [f"{paper.key} {paper.status}" for paper in store_clients.open]
        late += [f"{intake.key} {intake.status}" for intake in store_clients.open_intakes]
        campaign.journal.violation(f"I1: not settled in time: {', '.join(late)}")


def judge_stores(campaign: "Campaign") -> None:
    client, store_clients, blame = campaign.load.client.sdk, campaign.load.store_clients, campaign.journal.violation
    kept = campaign.load.source_client.mirror.id
    jobs = [job for job in _ingestions(client) if job["vector_store_id"] != kept]
    blame(*store_oracle.one_job_each([str(job["idempotency_key"]) for job in jobs], store_clients.intakes))
    ids = {str(job["idempotency_key"]): str(job["id"]) for job in jobs}
    for intake in store_clients.intakes:
        if intake.key in ids:
            blame(*store_oracle.told(intake, _events(client, ids[intake.key]), campaign.load.told))
        if intake.batch and not intake.store.gone:
            blame(*store_oracle.added_up(intake))
    _judge_shelves(campaign, client)
    _judge_inside(campaign)
    if embedded_again(campaign) > embedding_bound(campaign):
        blame(f"I4: {embedded_again(campaign)} texts were embedded again, {embedding_bound(campaign)} may be")


def embedded_again(campaign: "Campaign") -> int:
    """But for what was searched for, and what is asked again on purpose."""
    load = campaign.load
    allowed = load.store_clients.queries | load.source_client.queries | {text_mark(text) for text in TEXTS}
    return sum(oracle.embedded_again(log, allowed) for log in campaign.prompts())


def embedding_bound(campaign: "Campaign") -> int:
    """Return how many texts may be embedded again: those of each claim that a fault may cost."""
    return CHUNKS_AT_ONCE * SLOTS * sum(bool(ALL_FAULTS[one.name].rework) for one in campaign.struck)


def _ingestions(client: OpenAI) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page: Any = client.get(f"/jobs?kind=ingestion&limit=100{after}", cast_to=object)
        found += page["data"]
        if not page["has_more"]:
            return found
        after = f"&after={page['last_id']}"


def _events(client: OpenAI, job_id: str) -> list[dict[str, Any]]:
    page: Any = client.get(f"/jobs/{job_id}/events?limit=100", cast_to=object)
    return list(page["data"])


def _judge_shelves(campaign: "Campaign", client: OpenAI) -> None:
    store_clients, blame = campaign.load.store_clients, campaign.journal.violation
    shown = {store.id: store for store in client.vector_stores.list(limit=100)}
    live = {store.id for store in store_clients.alive} | {campaign.load.source_client.mirror.id} - {""}
    if shown.keys() != live:
        blame(f"stores {sorted(shown.keys() - live)} should not be there, {sorted(live - shown.keys())} should")
    for store in store_clients.alive:
        files = {file.id: file for file in client.vector_stores.files.list(store.id, limit=100)}
        due = {paper.file_id: paper for paper in store.there}
        if files.keys() != due.keys():
            blame(f"{store.key}: {sorted(files.keys() ^ due.keys())} are in it or in its list alone")
        for name in files.keys() & due.keys():
            error = files[name].last_error
            blame(*store_oracle.settled(due[name], files[name].status, error.code if error else None))
        _judge_searches(campaign, store)


def _judge_searches(campaign: "Campaign", store: KnownStore) -> None:
    """Judge searches of a store: each file is found by its own word, once and alone, and all of it by its vectors."""
    store_clients, blame = campaign.load.store_clients, campaign.journal.violation
    for paper in [paper for paper in store.papers if not paper.refused]:
        there = not paper.gone and paper.status == "completed"
        names = [one.file_id for one in store_clients.find_patiently(store, paper, by_words=True)]
        may_be = not paper.gone and paper.status == "cancelled"
        if names != ([paper.file_id] if there else []) and not (may_be and names == [paper.file_id]):
            blame(f"{paper.key} ({'gone' if paper.gone else paper.status}): a search for its word finds {names}")
        if there:
            near = store_clients.find_patiently(store, paper, by_words=False)
            blame(
                *store_oracle.whole(paper, near, paper.sizes),
                *([] if near else [f"{paper.key}: no vector of it is found"]),
            )


def _judge_inside(campaign: "Campaign") -> None:
    with opened(campaign) as found:
        _await_purged(campaign, found)
        campaign.journal.violation(*found.violations())


@contextmanager
def opened(campaign: "Campaign") -> Iterator[Inside]:
    """Open the deployment's own stores."""
    shared = campaign.servers
    config = Settings(
        data_dir=campaign.system.data,
        database_url=shared.database if shared else campaign.database_url,
        storage_url=shared.variables["NIGHTMILL_STORAGE_URL"] if shared else "",
        vectors_url=campaign.weaviate.url if campaign.weaviate else "",
    )
    with inside(config, shared) as stores:
        yield stores


def _await_purged(campaign: "Campaign", found: Inside) -> None:
    try:
        wait_for(lambda: not found.pending(), _PURGE_SECONDS * campaign.patience, "everything is removed", every=0.5)
    except TimeoutError as error:
        campaign.journal.violation(f"{error}: {found.pending()} are pending")
