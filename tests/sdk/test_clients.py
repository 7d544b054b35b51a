"""Client libraries that are built on the SDK, against one server on a real socket: each check a test."""

import re

import pytest

from tests.sdk.deployment import Deployment
from tests.sdk.environments import HERE
from tests.sdk.suites import Suite, run_suite

CHECKS = re.findall(r'^@check\("(.+)"\)$', (HERE / "clients.py").read_text(), re.MULTILINE)
pytestmark = [
    pytest.mark.verify,
    pytest.mark.timeout(600),
]  # it imports six large libraries, and may install them before


@pytest.fixture(scope="module")
def suite(deployment: Deployment) -> Suite:
    return run_suite("clients", deployment)


def test_every_library_has_the_version_that_is_pinned(suite: Suite) -> None:
    pins = (HERE / "clients.txt").read_text().splitlines()

    assert len(suite.version.split()) == 5
    assert [pair for pair in suite.version.split() if pair.replace("=", "==") not in pins] == []


def test_every_check_is_run(suite: Suite) -> None:
    assert suite.names == CHECKS
    assert {name.split(":")[0] for name in CHECKS} == {"litellm", "openai-agents", "pydantic-ai", "inspect-ai"}


@pytest.mark.parametrize("check", CHECKS)
def test_this_client_finds_that(suite: Suite, check: str) -> None:
    assert suite.lines[check]["ok"], suite.lines[check]["detail"]


def test_the_server_behind_made_no_mistake(deployment: Deployment) -> None:
    assert deployment.inline.errors == []
