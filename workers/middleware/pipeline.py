"""What stands before a worker's engines, and in which order.

    Request ─▶ DecodedTokenIds ─▶ Cached ─▶ Grounded ─▶ Unpacked ─▶ Fitted ─▶ Checked ─▶ engine

Token ids of OpenAI's become texts before the cache compares them. A hit costs none of the layers behind it. What is
found in files, and what a conversation was compacted to, is fitted into the context with the rest, and what a schema
has asked for once more is of the prompt as it was cut.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jobs.settings import Settings
from workers.engines.port import Engine
from workers.middleware.cache import Cached, Identity
from workers.middleware.compaction import Unpacked
from workers.middleware.context_window import Fitted, Measure, Others
from workers.middleware.file_search import Grounded, Rooms, Searcher
from workers.middleware.json_schema import Checked
from workers.middleware.response_cache import Shelf
from workers.middleware.schema_checker import Checker
from workers.middleware.token_ids import DecodedTokenIds


@dataclass(frozen=True, slots=True)
class Needs:
    """What they ask."""

    measure: Measure
    identity: Identity
    is_alias: Callable[[str], bool]
    others: Others
    search: Searcher
    rooms: Rooms
    shelf: Shelf
    checker: Checker


def before(engine: Engine, needs: Needs, config: Settings) -> DecodedTokenIds:
    fitted = Fitted(Checked(engine, needs.checker), needs.measure, needs.others)
    cached = Cached(Grounded(Unpacked(fitted), needs.search, needs.rooms), needs.shelf, needs.identity, config)
    return DecodedTokenIds(cached, needs.is_alias)
