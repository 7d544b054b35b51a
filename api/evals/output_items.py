"""The output items of a run: read from the segments of its job, in the order of the items."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import Query
from sqlalchemy import select

from api.deps import Call, CallContext
from api.errors import clip
from api.evals.runs import get_run
from api.evals.schemas import OutputItem
from api.http.bodies import resource
from api.http.paging import OldestFirst, Page
from jobs.errors import InvalidRequest, NotFound
from jobs.evals import runs
from jobs.ledger.tables import Segment, Shard

router = resource("Evals", area="evals")

_SHARDS_AT_ONCE: Final = 20
_ItemStatus = Literal["pass", "fail", "error"]
Status = Annotated[_ItemStatus | None, Query(description="Only items of this status; `error` is ours.")]


@router.get("/evals/{eval_id}/runs/{run_id}/output_items")
def list_output_items(
    call: Call, eval_id: str, run_id: str, listing: OldestFirst, status: Status = None
) -> Page[OutputItem]:
    """List the graded items of a run, also while it goes on."""
    with call.db.read() as session:
        run_id = get_run(session, call, eval_id, run_id)[0].id
    start, after, limit = None, listing.after, listing.limit
    if after is not None and (start := runs.item_number(run_id, after)) is None:
        raise InvalidRequest(f"No object with id '{clip(after)}'.", param="after", code="invalid_cursor")
    items: list[dict[str, Any]] = []
    for item in _items(call, run_id, start, status, falling=listing.order == "desc"):
        items.append(item)
        if len(items) > limit:
            break
    shown = [OutputItem.model_validate(item) for item in items[:limit]]
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return Page(data=shown, first_id=first, last_id=last, has_more=len(items) > limit)


@router.get("/evals/{eval_id}/runs/{run_id}/output_items/{output_item_id}")
def retrieve_output_item(call: Call, eval_id: str, run_id: str, output_item_id: str) -> OutputItem:
    """Return a graded item of a run."""
    with call.db.read() as session:
        run_id = get_run(session, call, eval_id, run_id)[0].id
    number = runs.item_number(run_id, output_item_id)
    item = next(_items(call, run_id, number - 1, None, falling=False), None) if number is not None else None
    if item is None or item["id"] != output_item_id:
        raise NotFound(f"No output item found with id '{clip(output_item_id)}'.", param="output_item_id")
    return OutputItem.model_validate(item)


def lines_of(call: CallContext, run_id: str) -> Iterator[bytes]:
    """Yield the graded items of a run in their order, each as the JSON that is stored."""
    return _texts(call, run_id, None, None, falling=False)


def _items(
    call: CallContext, run_id: str, start: int | None, status: _ItemStatus | None, *, falling: bool
) -> Iterator[dict[str, Any]]:
    """Yield the items behind the number `start`."""
    items = map(msgspec.json.Decoder(dict[str, Any]).decode, _texts(call, run_id, start, status, falling=falling))
    return (item for item in items if status in (None, item["status"]))


def _texts(
    call: CallContext, run_id: str, start: int | None, status: _ItemStatus | None, *, falling: bool
) -> Iterator[bytes]:
    """Yield the texts of the items behind the number `start` that may have the status, shard by shard."""
    for shard, segments in _shards(call, run_id, start, falling=falling):
        records = dict(_records(call, segments, status))
        for line in sorted(records, reverse=falling):
            number = shard.first_line + line
            if start is not None and (number >= start if falling else number <= start):
                continue
            yield records[line]


def _shards(
    call: CallContext, run_id: str, start: int | None, *, falling: bool
) -> Iterator[tuple[Shard, Sequence[Segment]]]:
    """Yield the shards with items behind the number `start`, each with its segments."""
    statement = select(Shard).where(Shard.job_id == run_id)
    if start is not None:
        behind = Shard.first_line < start if falling else Shard.first_line + Shard.lines > start + 1
        statement = statement.where(behind)
    last: int | None = None
    while True:
        page = statement if last is None else statement.where(Shard.n < last if falling else Shard.n > last)
        page = page.order_by(Shard.n.desc() if falling else Shard.n).limit(_SHARDS_AT_ONCE)
        with call.db.read() as session:
            shards = session.scalars(page).all()
            numbers = [shard.n for shard in shards]
            of_shards = select(Segment).where(Segment.job_id == run_id, Segment.n.in_(numbers))
            segments = session.scalars(of_shards).all()
        for shard in shards:
            yield shard, [segment for segment in segments if segment.n == shard.n]
        if len(shards) < _SHARDS_AT_ONCE:
            return
        last = shards[-1].n


def _records(call: CallContext, segments: Sequence[Segment], status: _ItemStatus | None) -> Iterator[tuple[int, bytes]]:
    """Yield the line and the text of each record that may have the status; none that were removed meanwhile."""
    for segment in segments:
        good, covered = (int.from_bytes(bitmap, "little") for bitmap in (segment.good, segment.covered))
        fitting = {None: covered, runs.PASSED: good}.get(status, covered & ~good)
        if not fitting:
            continue
        try:
            with call.storage.reader(segment.path) as handle:
                for raw in handle:
                    line, _, text = raw.split(b"\t", 2)
                    if fitting >> int(line) & 1:
                        yield int(line), text
        except NotFound:
            continue
