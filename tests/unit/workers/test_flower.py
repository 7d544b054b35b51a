"""Flower as the Procfile starts it: who has its password sees everything and changes nothing; others see nothing."""

import base64
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flower.urls import handlers

from tests.support.system import eventually, free_port

Ask = Callable[..., int]


def _posts() -> set[str]:
    """Return the paths of Flower that take a POST; all of them are below /api."""
    routes = [tuple(route)[:2] for route in handlers if isinstance(route, tuple) and "(" in route[0]]
    return {pattern.replace("(.+)", "nightmill.run") for pattern, handler in routes if "post" in vars(handler)}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    port = free_port()
    environment = {
        **os.environ,
        "FLOWER_BASIC_AUTH": "nightmill:sesame",
        "FLOWER_READ_ONLY": "false",
        "NIGHTMILL_FLOWER_PORT": str(port),
        "NIGHTMILL_BROKER_URL": "memory://",
        "NIGHTMILL_DATA_DIR": str(tmp_path_factory.mktemp("flower")),
    }

    def ask(path: str, body: bytes | None = None, login: str = "nightmill:sesame") -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body)
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def answers() -> bool:
        try:
            return ask("/healthcheck") == 200
        except OSError:
            return False

    command = [sys.executable, "-m", "workers.flower"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], env=environment, stderr=subprocess.DEVNULL) as flower:
        try:
            eventually(answers, 60, "Flower answers")
            yield ask
        finally:
            flower.terminate()


@pytest.mark.parametrize("path", sorted(_posts()))
def test_flower_refuses_changes_by_authenticated_user(ask: Ask, path: str) -> None:
    assert ask(path, b"{}") == 403


@pytest.mark.parametrize("path", ["/", "/metrics", "/workers", "/api/workers", "/api/tasks"])
def test_flower_shows_itself_only_with_the_password(ask: Ask, path: str) -> None:
    assert ask(path, login="") == 401
    assert ask(path, login="nightmill:wrong") == 401
    assert ask(path) == 200
