"""What the context of a worker says of the disk."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.errors import StorageFull
from jobs.settings import Settings
from workers.runtime.context import Context


def _no_inodes() -> int:
    raise StorageFull


@pytest.mark.parametrize(
    ("free", "waits"),
    [(lambda: 1000, False), (lambda: 999, True), (lambda: 0, True), (lambda: None, False), (_no_inodes, True)],
)
def test_work_waits_where_uploads_are_refused(free: Any, waits: bool) -> None:
    nothing = cast(Any, None)
    storage = cast(Any, SimpleNamespace(free=free))
    config = Settings(min_free_bytes=1000)

    context = Context(config, nothing, storage, "cpu-1", nothing, nothing, nothing, nothing)

    assert context.low_on_disk() is waits
