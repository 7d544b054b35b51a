"""The cache of a project: vectors that it need not have computed again, and answers that it let be given again."""

from typing import Literal

from pydantic import BaseModel

from api.deps import Call
from api.http.resource import resource
from jobs.inference import cache

router = resource("Cache")


class CacheDeleted(BaseModel):
    """`entries` is how many could be found until then."""

    object: Literal["cache.deleted"] = "cache.deleted"
    deleted: bool = True
    entries: int


@router.delete("/cache")
def delete_cache(call: Call) -> CacheDeleted:
    """Clear the project's cache: from now on nothing of before is found. Its bytes go afterwards."""
    with call.db.write() as session:
        entries = cache.clear(session, call.project_id)
        call.record(session, "cache.delete", call.project_id, {"entries": entries})
    return CacheDeleted(entries=entries)
