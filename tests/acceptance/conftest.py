"""The web process on a real socket and the official SDK, unmodified."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI

from tests.support.web import make_key, running_app, serve


@pytest.fixture
def web(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    with running_app(tmp_path, sqlite_url, webhook_allow_private=True) as app:
        yield app


@pytest.fixture
def url(web: FastAPI) -> Iterator[str]:
    with serve(web) as url:
        yield url


@pytest.fixture
def sdk(web: FastAPI, url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=make_key(web), base_url=f"{url}/v1") as client:
        yield client


@pytest.fixture
def other_sdk(web: FastAPI, url: str) -> Iterator[openai.OpenAI]:
    """Of another project."""
    with openai.OpenAI(api_key=make_key(web, "another"), base_url=f"{url}/v1") as client:
        yield client
