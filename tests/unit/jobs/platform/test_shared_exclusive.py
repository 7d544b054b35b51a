"""Processes that share an engine: any number among others, or one alone. A second descriptor is a second process."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.platform.limiters import POLL_SECONDS, SharedExclusiveLock

_A_WHILE = 5 * POLL_SECONDS


@pytest.fixture
def here(tmp_path: Path) -> Iterator[SharedExclusiveLock]:
    company = SharedExclusiveLock(tmp_path / "gpu", patience=30)
    yield company
    company.close()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[SharedExclusiveLock]:
    company = SharedExclusiveLock(tmp_path / "gpu", patience=30)
    yield company
    company.close()


def test_requests_of_several_processes_are_in_flight_together(
    here: SharedExclusiveLock, there: SharedExclusiveLock
) -> None:
    assert here.try_shared()
    assert there.try_shared()


async def test_who_wants_to_be_alone_waits_for_what_is_in_flight_elsewhere(
    here: SharedExclusiveLock, there: SharedExclusiveLock
) -> None:
    there.try_shared()
    alone = asyncio.create_task(here.acquire_exclusive())
    await asyncio.sleep(_A_WHILE)
    waited = not alone.done()
    there.release()

    async with asyncio.timeout(30):
        await alone
    assert waited


async def test_nothing_begins_elsewhere_while_one_waits_to_be_alone_or_is(
    here: SharedExclusiveLock, there: SharedExclusiveLock
) -> None:
    there.try_shared()
    alone = asyncio.create_task(here.acquire_exclusive())
    await asyncio.sleep(_A_WHILE)
    while_waiting = there.try_shared()
    there.release()
    await alone
    while_alone = there.try_shared()
    here.release()

    assert (while_waiting, while_alone, there.try_shared()) == (False, False, True)


async def test_two_are_alone_one_after_the_other(here: SharedExclusiveLock, there: SharedExclusiveLock) -> None:
    await here.acquire_exclusive()
    second = asyncio.create_task(there.acquire_exclusive())
    await asyncio.sleep(_A_WHILE)
    waited = not second.done()
    here.release()

    async with asyncio.timeout(30):
        await second
    assert waited


async def test_one_that_hangs_is_not_waited_for_longer_than_patience_allows(
    tmp_path: Path, here: SharedExclusiveLock
) -> None:
    hasty = SharedExclusiveLock(tmp_path / "gpu", patience=_A_WHILE)
    await here.acquire_exclusive()
    at_first = hasty.try_shared()
    await asyncio.sleep(2 * _A_WHILE)
    later = hasty.try_shared()
    hasty.release()

    async with asyncio.timeout(30):
        await hasty.acquire_exclusive()
    assert (at_first, later) == (False, True)
    hasty.close()


async def test_process_that_dies_alone_keeps_nobody_out(tmp_path: Path, there: SharedExclusiveLock) -> None:
    dying = SharedExclusiveLock(tmp_path / "gpu", patience=30)
    await dying.acquire_exclusive()
    shut = there.try_shared()
    dying.close()

    await asyncio.sleep(POLL_SECONDS)
    assert (shut, there.try_shared()) == (False, True)
