"""Interactive clients that ask for tuned models through the official SDK: what answers, and who may ask."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from jobs.db.engine import Database
from tests.support import tuned_adapters
from tests.support.interactive_api import Shop
from tests.support.system import eventually

NAME = "ft:fake-model:default:support:abc"
HELLO: Any = [{"role": "user", "content": "Hello"}]


def database(shop: Shop) -> Database:
    found: Database = shop.app.state.services.db
    return found


def tuned(shop: Shop, name: str = NAME, project: str = "default") -> str:
    return tuned_adapters.tuned_model(database(shop), shop.app.state.services.storage, name, project=project)


def test_chats_completions_and_responses_whole_and_streamed_come_from_the_adapter(
    make_shop: Callable[..., Shop],
) -> None:
    shop = make_shop()
    with shop.open():
        client, adapter = shop.client, tuned(shop)
        made_by = f"fake-model+{adapter}+fake-1"

        chat = client.chat.completions.with_raw_response.create(model=NAME, messages=HELLO)
        stored = client.chat.completions.with_raw_response.create(model=NAME, messages=HELLO, store=True)
        with client.chat.completions.with_streaming_response.create(model=NAME, messages=HELLO, stream=True) as raw:
            events, header = list(raw.iter_lines()), raw.headers["x-nightmill-model"]
        text = client.completions.create(model=NAME, prompt="Hello")
        response = client.responses.with_raw_response.create(model=NAME, input="Hello")
        pieces = list(client.responses.create(model=NAME, input="Hello", stream=True))

    answer = chat.parse()
    assert (answer.model, answer.system_fingerprint) == (NAME, made_by)
    assert (answer.choices[0].message.content or "").startswith(adapter)
    assert {chat.headers["x-nightmill-model"], stored.headers["x-nightmill-model"], header} == {made_by}
    assert response.headers["x-nightmill-model"] == made_by
    assert stored.parse().model == NAME
    assert any(adapter in line for line in events)
    assert text.model == NAME
    assert text.choices[0].text.startswith(adapter)
    assert response.parse().model == NAME
    assert response.parse().output_text.startswith(adapter)
    assert {piece.response.model for piece in pieces if hasattr(piece, "response")} == {NAME}


def test_the_base_model_has_no_such_header(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop()
    with shop.open():
        tuned(shop)
        chat = shop.client.chat.completions.with_raw_response.create(model="fake-model", messages=HELLO)

    assert "x-nightmill-model" not in chat.headers


def test_other_project_needs_permission_and_deleted_model_is_refused(
    make_shop: Callable[..., Shop],
) -> None:
    shop = make_shop()

    def refused(client: openai.OpenAI, name: str = NAME) -> str | None:
        try:
            client.chat.completions.create(model=name, messages=HELLO)
        except openai.NotFoundError as error:
            return str(error.code)
        return None

    with shop.open():
        adapter, stranger = tuned(shop), shop.stranger()
        assert (refused(stranger), refused(stranger, f"{NAME}x")) == ("model_not_found", "model_not_found")

        tuned_adapters.permit(database(shop), NAME, "strangers")
        eventually(lambda: refused(stranger) is None, 60, "the permission holds")
        tuned_adapters.forbid(database(shop), NAME)
        eventually(lambda: refused(stranger) == "model_not_found", 60, "the permission was withdrawn")

        assert refused(shop.client) is None
        tuned_adapters.delete(database(shop), NAME)
        eventually(lambda: refused(shop.client) is not None, 60, "the deletion is seen")
        with pytest.raises(openai.NotFoundError) as error:
            shop.client.chat.completions.create(model=NAME, messages=HELLO)
    assert error.value.code in {"model_not_found", "model_deleted"}
    assert shop.engine.loads == [adapter]
