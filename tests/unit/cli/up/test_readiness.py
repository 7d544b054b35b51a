"""`nightmill up` says how far the server and the engines are."""

import threading
import time
from typing import Any

import pytest

from cli.up import readiness


def _loading(phase: str) -> dict[str, Any]:
    entry = {"queue": "gpu.generate", "model": "tiny", "phase": phase, "since": time.time() - 40}
    return {"database": "ok", "workers": {}, "loading": [entry]}


def test_each_loading_phase_is_announced_and_its_seconds_are_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    importing, reading = _loading("importing vLLM"), _loading("reading the weights")
    up = {"database": "ok", "workers": {"gpu.generate": 2}, "loading": []}
    answers = iter([importing, importing, importing, reading, reading, up])
    said, updated = list[str](), list[str]()
    monkeypatch.setattr(readiness, "look", lambda _url: next(answers))
    monkeypatch.setattr(readiness, "_MOVING", 0.0)

    readiness.tell_when_up(
        "http://server",
        {"gpu": "gpu.generate"},
        lambda: said.append("ready"),
        said.append,
        updated.append,
        threading.Event(),
    ).join(30)

    assert [text.partition(", 4")[0] for text in said] == [
        "ready",
        "gpu is loading tiny (importing vLLM)",
        "gpu is loading tiny (reading the weights)",
        "gpu takes work from gpu.generate",
    ]
    assert [text.partition(", 4")[0] for text in updated] == [
        "gpu is loading tiny (importing vLLM)",
        "gpu is loading tiny (reading the weights)",
    ]
