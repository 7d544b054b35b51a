"""A suite: a process in the environment of an SDK or a client library, whose output is looked up check by check."""

import json
import subprocess
from typing import Any

from tests.sdk.deployment import Deployment
from tests.sdk.environments import NotMade, command
from tests.support.services import need


class Suite:
    """The version that a suite ran under, and the outcome of each of its checks."""

    def __init__(self, words: list[str], facts: dict[str, Any]) -> None:
        done = subprocess.run([*words, json.dumps(facts)], check=False, capture_output=True, text=True, timeout=480)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        first, *lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.version: str = first["sdk"]
        self.names = [line["check"] for line in lines]
        self.lines: dict[str, dict[str, Any]] = {line["check"]: line for line in lines}
        self.errors = done.stderr


def run_suite(name: str, deployment: Deployment, program: str | None = None) -> Suite:
    """Run the suite of an environment, or another `program` of this folder.

    Where the environment cannot be installed the test is skipped visibly, or fails where CI is set.
    """
    try:
        words = command(name, program)
    except NotMade as error:
        need(f"the environment of {name}", error)
    return Suite(words, deployment.facts(name))
