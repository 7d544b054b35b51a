"""The supervisor starts what becomes necessary while it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from cli.up.service import Program, Service
from cli.up.supervisor import Hooks, Plan, Supervisor, Wakeups


def test_newly_required_service_is_started_and_announced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(Program("gpu.big", ("python", "-m", "workers", "gpu", "gpu.big"), {}, tmp_path, tmp_path / "log"))
    missing: list[Sequence[Service]] = [[], [service], []]
    said, published, started = list[str](), list[list[str]](), list[str]()
    monkeypatch.setattr(Service, "start", lambda self: started.append(self.name))
    hooks = Hooks(
        say=said.append,
        publish=lambda services: published.append([one.name for one in services]),
        released=lambda: None,
        stopping=lambda: None,
    )
    supervisor = Supervisor(Plan([], more=lambda: missing.pop(0)), hooks, cast(Wakeups, None))
    monkeypatch.setattr("cli.up.supervisor._SWEEP", 0.0)

    for _ in range(3):
        supervisor._start_more()

    assert (started, published) == (["gpu.big"], [["gpu.big"]])
    assert said == ["starting gpu.big: python -m workers gpu gpu.big"]
