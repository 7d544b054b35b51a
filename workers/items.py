"""The lines of a shard as items: parsed, the job's overrides laid over them, ordered so that shared prefixes meet."""

import msgspec

from jobs import lines, responses
from jobs.payloads import Batch, Response
from jobs.shards import ShardClaim
from workers import records
from workers.context import Context
from workers.engines.port import Answer, Request
from workers.records import Item, Record
from workers.trials import Trials

_decode = msgspec.json.Decoder(dict).decode
_INVALID = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":"invalid_request"}}'


def read_items(context: Context, claim: ShardClaim) -> tuple[list[Item], list[Record]]:
    """The items of the lines that are not covered, and records for those whose body no engine could take."""
    job = claim.job
    payload = (Response if job.kind == responses.KIND else Batch).model_validate(job.payload)
    with context.storage.reader(job.input_path or "", claim.offset) as handle:
        data = handle.read(claim.length)
    found: list[tuple[bytes, Item]] = []
    broken: list[Record] = []
    for line, raw in enumerate(lines.split(data)):
        if claim.covered >> line & 1:
            continue
        text = lines.working.decode(raw)
        item = _item(claim, line, text.custom_id)
        try:
            item.request.body.update(_decode(text.body))
        except (msgspec.MsgspecError, RecursionError):
            broken.append(_invalid(item))
            continue
        item.request.body.update(payload.overrides)
        found.append((bytes(text.body), item))
    found.sort(key=lambda pair: pair[0])
    return (_deduped(found) if payload.dedupe else [item for _, item in found]), broken


def _item(claim: ShardClaim, line: int, custom_id: str) -> Item:
    item_id = records.line_id(claim.job.id, claim.n, line)
    request = Request(
        url=claim.job.endpoint,
        body={},
        request_id=f"req_{item_id.removeprefix('batch_req_')}e{claim.epoch}",
        priority=-claim.job.priority,
        tenant=claim.job.project_id,
        job_id=claim.job.id,
    )
    return Item(line, custom_id, item_id, request, trials=Trials(*claim.faults.get(line, ())))


def _deduped(found: list[tuple[bytes, Item]]) -> list[Item]:
    """Equal bodies are neighbours after sorting: the first leads, the others follow."""
    leaders: list[Item] = []
    previous: bytes | None = None
    for body, item in found:
        if body == previous:
            leaders[-1].followers.append(item)
        else:
            leaders.append(item)
            previous = body
    return leaders


def _invalid(item: Item) -> Record:
    answer = Answer(400, _INVALID % b"The body of this request cannot be read as JSON.")
    return records.answered(item, answer)
