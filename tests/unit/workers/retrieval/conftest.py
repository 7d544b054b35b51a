"""A parser for all tests of retrieval: starting its child takes longer than most of them."""

import os
from collections.abc import Iterator

import pytest

from tests.support.ingestion import ReadOnce
from workers.retrieval.parsing.parser import Parser, ParserLimits


@pytest.fixture(scope="session")
def parser() -> Iterator[ReadOnce]:
    parser = Parser(ParserLimits())
    yield ReadOnce(parser)
    parser.close()


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what is written to the cache of the system: it need not outlive a power cut."""
    monkeypatch.setattr(os, "fsync", bool)
