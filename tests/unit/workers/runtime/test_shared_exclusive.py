"""Processes that share an engine: any number among others, or one alone. A second descriptor is a second process."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.runtime.shared_exclusive import POLL_SECONDS, Company

_A_WHILE = 5 * POLL_SECONDS


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Company]:
    company = Company(tmp_path / "gpu", patience=30)
    yield company
    company.close()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Company]:
    company = Company(tmp_path / "gpu", patience=30)
    yield company
    company.close()


def test_requests_of_several_processes_are_in_flight_together(here: Company, there: Company) -> None:
    assert here.may_begin()
    assert there.may_begin()


async def test_who_wants_to_be_alone_waits_for_what_is_in_flight_elsewhere(here: Company, there: Company) -> None:
    there.may_begin()
    alone = asyncio.create_task(here.be_alone())
    await asyncio.sleep(_A_WHILE)
    waited = not alone.done()
    there.leave()

    async with asyncio.timeout(1):
        await alone
    assert waited


async def test_nothing_begins_elsewhere_while_one_waits_to_be_alone_or_is(here: Company, there: Company) -> None:
    there.may_begin()
    alone = asyncio.create_task(here.be_alone())
    await asyncio.sleep(_A_WHILE)
    while_waiting = there.may_begin()
    there.leave()
    await alone
    while_alone = there.may_begin()
    here.leave()

    assert (while_waiting, while_alone, there.may_begin()) == (False, False, True)


async def test_two_are_alone_one_after_the_other(here: Company, there: Company) -> None:
    await here.be_alone()
    second = asyncio.create_task(there.be_alone())
    await asyncio.sleep(_A_WHILE)
    waited = not second.done()
    here.leave()

    async with asyncio.timeout(1):
        await second
    assert waited


async def test_one_that_hangs_is_not_waited_for_longer_than_patience_allows(tmp_path: Path, here: Company) -> None:
    hasty = Company(tmp_path / "gpu", patience=_A_WHILE)
    await here.be_alone()
    at_first = hasty.may_begin()
    await asyncio.sleep(2 * _A_WHILE)
    later = hasty.may_begin()
    hasty.leave()

    async with asyncio.timeout(1):
        await hasty.be_alone()
    assert (at_first, later) == (False, True)
    hasty.close()


async def test_process_that_dies_alone_keeps_nobody_out(tmp_path: Path, there: Company) -> None:
    dying = Company(tmp_path / "gpu", patience=30)
    await dying.be_alone()
    shut = there.may_begin()
    dying.close()

    await asyncio.sleep(POLL_SECONDS)
    assert (shut, there.may_begin()) == (False, True)
