"""Vercel's AI SDK, in node, against one server on a real socket: each check a test."""

import json

import pytest

from tests.sdk.deployment import Deployment
from tests.sdk.environments import NODE_SUITES
from tests.sdk.suites import Suite, run_suite

NAME = "ai-sdk-7"
CHECKS = (
    "a second turn refers to the text of the first, whole",
    "a tool is called, its result is read, and the next turn refers to all of it, whole",
    "a second turn refers to the text of the first, as a stream",
    "a tool is called, its result is read, and the next turn refers to all of it, as a stream",
    "a turn that refers to a deleted item hears which",
    "what is not stored is sent again, and not referred to",
)
#: The first test may install the SDK before.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def suite(deployment: Deployment) -> Suite:
    return run_suite(NAME, deployment)


def test_the_suite_is_whole_and_of_the_version_that_is_pinned(suite: Suite) -> None:
    pins = json.loads((NODE_SUITES[NAME] / "package.json").read_text())["dependencies"]

    assert suite.version == pins["ai"]
    assert suite.names == list(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_the_ai_sdk_finds_that(suite: Suite, check: str) -> None:
    assert suite.lines[check]["ok"], suite.lines[check]["detail"]


def test_the_server_behind_made_no_mistake(deployment: Deployment) -> None:
    assert deployment.inline.errors == []
