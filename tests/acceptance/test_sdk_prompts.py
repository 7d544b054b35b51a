"""Prompts through the official SDK: `prompt` of responses in its types, by the synchronous and asynchronous clients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import ResponsePrompt

from tests.support.interactive_api import MODEL, Shop, running_broker, shops

CONTENT = {"model": MODEL, "instructions": "Answer {{name}}.", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def shop(tmp_path: Path, sqlite_url: str) -> Iterator[Shop]:
    with running_broker(tmp_path) as broker, shops(tmp_path, sqlite_url, broker) as make:
        shop = make()
        with shop.open():
            yield shop


async def test_prompt_of_response_has_type_of_sdk(shop: Shop) -> None:
    made: Any = shop.client.post("/prompts", body=CONTENT, cast_to=object)
    used: Any = {"id": made["id"], "version": "1", "variables": {"name": "Ada"}}

    whole = shop.client.responses.create(prompt=used)
    with shop.client.responses.stream(model=MODEL, prompt=used, input="Hi") as stream:
        streamed = stream.get_final_response()
    async with openai.AsyncOpenAI(base_url=shop.url, api_key=shop.client.api_key) as client:
        again = await client.responses.create(prompt=used)

    for answer in (whole, streamed, again):
        assert isinstance(answer.prompt, ResponsePrompt)
        assert (answer.prompt.id, answer.prompt.version, answer.prompt.variables) == (used["id"], "1", {"name": "Ada"})
        assert answer.output_text
    with pytest.raises(openai.BadRequestError, match="needs variable 'name'"):
        shop.client.responses.create(prompt={"id": used["id"]})
