"""Judge, after a run, the folder that a store follows, that store's indexes, and the caches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import openai

from tests.chaos.faults import VLLM_FAULTS
from tests.chaos.load import Broken
from tests.chaos.source_client import SHOWN, SourceClient
from tests.support import cache_oracle, source_oracle
from tests.support.source_oracle import Mirror, Version

if TYPE_CHECKING:
    from tests.chaos.campaign import Campaign

_SETTLE_SECONDS = 90.0
_WRITTEN_SECONDS = 20.0  # a cache that could not be read rests half of that
_WORDS = 20  # of one search
BROKEN_SECONDS = 15.0  # from an engine's end to the answer that says so: processes may be frozen on its way
_OWN_WORDS = '"The engine gave no answer."'  # of an engine's fault it is told which


def await_kept(campaign: "Campaign") -> None:
    """I1: a sync that began after the last change ends well, and every index has all of it."""
    source_client, seconds = campaign.load.source_client, _SETTLE_SECONDS * campaign.patience
    if not source_client.await_settled(seconds):
        campaign.journal.violation(f"I1: {source_client.mirror.key} was not settled in time: {source_client.state()}")
    for one in campaign.load.repeaters:
        if not one.await_idle(seconds):
            campaign.journal.violation(f"I1: a request of {one.project} was not answered in time")


def judge_mirror(campaign: "Campaign") -> None:
    """Judge that each index has every document of the folder once, in its last version, and no former one."""
    source_client, blame = campaign.load.source_client, campaign.journal.violation
    if not source_client.mirror.source:
        if campaign.struck:
            blame(f"{source_client.mirror.key} never had a source")
        return
    client, mirror = campaign.load.client.sdk, source_client.mirror
    path = f"/vector_stores/{mirror.id}"
    items: Any = client.get(f"{path}/sources/{mirror.source}/items?limit=100", cast_to=object)
    files = {file.id: file.status for file in client.vector_stores.files.list(mirror.id, limit=100)}
    blame(*source_oracle.listed(mirror, items["data"], files))
    page: Any = client.get(f"{path}/indexes", cast_to=object)
    blame(
        *source_oracle.indexed(mirror, page["data"], {one["id"]: _files_of(client, path, one) for one in page["data"]})
    )
    for index in sorted(page["data"], key=lambda one: bool(one["status"] == "active")):  # the last one stays in use
        blame(*_searched(client, source_client, index["id"]))
    blame(*contents(client, mirror), *_needles(source_client))


def _files_of(client: openai.OpenAI, path: str, index: Any) -> dict[str, str]:
    page: Any = client.get(f"{path}/indexes/{index['id']}/files?limit=100", cast_to=object)
    return {file["id"]: file["status"] for file in page["data"]}


def _gone(mirror: Mirror) -> list[Version]:
    return [one for one in mirror.versions if one.gone]


def _searched(client: openai.OpenAI, source_client: SourceClient, index: str) -> Iterator[str]:
    """Search, and return what is found while this index is in use."""
    mirror = source_client.mirror
    try:
        client.post(f"/vector_stores/{mirror.id}/indexes/{index}/switch", cast_to=object, body={})
    except openai.ConflictError as error:
        yield f"{mirror.key}: {error.message}"
        return
    found = source_client.find_patiently()
    for why in source_oracle.shown(
        mirror, found, list(mirror.here.values()), set(_gone(mirror)), cut=len(found) >= SHOWN
    ):
        yield f"{index}: {why}"


def contents(client: openai.OpenAI, mirror: Mirror) -> Iterator[str]:
    """Files are what the folder has, and those of what it has no more are deleted."""
    for one in mirror.here.values():
        kept = client.files.content(one.file_id).content
        if kept != one.content:
            yield f"{one}: {one.file_id} has {len(kept)} bytes that are not the {len(one.content)} of the folder"
    for one in _gone(mirror):
        if one.file_id:
            with suppress(openai.NotFoundError):
                client.files.retrieve(one.file_id)
                yield f"{one}: {one.file_id} is there still"


def _needles(source_client: SourceClient) -> Iterator[str]:
    """Yield what is wrong: each document is found by its own word, once, and nothing by the words of what is gone."""
    here, gone = list(source_client.mirror.here.values()), _gone(source_client.mirror)
    for start in range(0, len(source_client.mirror.versions), _WORDS):
        wanted = (here + gone)[start : start + _WORDS]
        found = sorted(hit.file_id for hit in source_client.find_patiently(" ".join(one.needle for one in wanted)))
        if found != (due := sorted(one.file_id for one in wanted if not one.gone)):
            names = ", ".join(map(str, wanted))
            yield f"{source_client.mirror.key}: a search for the words of {names} finds {found}, not {due}"


def judge_caches(campaign: "Campaign") -> None:
    """Check that cached answers were given before, to the same project, and since its cache was last cleared."""
    repeaters, blame = campaign.load.repeaters, campaign.journal.violation
    ends = [one.all_anew(_WRITTEN_SECONDS * campaign.patience) for one in repeaters]
    blame(*(why for end in ends for why in cache_oracle.anew(end)))
    clearings = [cut for one in repeaters for cut in one.clearings] + [end.clearing for end in ends]
    answers = [answer for one in repeaters for answer in one.answers]
    answers += [answer for end in ends for asked in end.answers for answer in asked]
    blame(*cache_oracle.answered(answers, clearings))
    vectors = [vector for one in repeaters for vector in one.vectors]
    vectors += [vector for end in ends for asked in end.vectors for vector in asked]
    log = [prompt for prompts in campaign.prompts() for prompt in prompts]
    blame(*cache_oracle.embedded(vectors, clearings, log))


def judge_broken(campaign: "Campaign") -> None:
    """Judge errors: the engine of a client that got no answer had ended, and none is the platform's own."""
    ended = [at for engine in campaign.engines for at in engine.ended]
    ended += [one.over for one in campaign.struck if one.name in VLLM_FAULTS]
    told = [broken for client in campaign.load.clients for broken in client.broken]
    campaign.journal.violation(*unexcused(told, ended, BROKEN_SECONDS * campaign.patience))
    campaign.journal.violation(*own_failures(campaign.system.errors()))


def unexcused(told: Sequence[Broken], ended: Sequence[float], seconds: float) -> list[str]:
    """Return the failures that no end of an engine so shortly before explains, and what a worker reports of itself."""
    return [one.told for one in told if _OWN_WORDS in one.told or not any(-1 < one.at - at < seconds for at in ended)]


def own_failures(logged: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the errors in the logs of services that are of a worker which failed on a question."""
    return [f"{name}: {line}" for name, lines in logged.items() for line in lines if "interactive_failed" in line]
