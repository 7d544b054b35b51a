"""Run a deployment for each file of suites."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdk.deployment import Deployment, deployed
from tests.support.databases import fresh
from tests.support.services import MEMORY


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with (
        tempfile.TemporaryDirectory(prefix="nightmill-sdk-", dir=MEMORY) as folder,
        fresh("sqlite", Path(folder)) as db,
        deployed(Path(folder), db) as deployment,
    ):
        yield deployment
