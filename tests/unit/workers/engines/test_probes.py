"""Probes: the same tokens, and log-probabilities within the bound."""

import math
from pathlib import Path

import pytest

from workers.engines import probes
from workers.engines.fake import FakeEngine
from workers.engines.port import Adapter, AdapterRefused, Passage, Request, Score
from workers.engines.probes import Probe

PROBE = Probe(messages=[], token_ids=(1, 2), continuation=(3, 4), logprobs=(-0.1, -0.2), base_logprobs=(-1.0, -1.0))
CHAT = "/v1/chat/completions"


def score(*logprobs: float, token_ids: tuple[int, ...] = (1, 2)) -> Score:
    return Score(token_ids, logprobs)


@pytest.mark.parametrize(
    ("tuned", "base", "complaint"),
    [
        (score(-0.1, -0.2), score(-1.0, -1.0), None),
        (score(-0.14, -0.25), score(-1.0, -1.0), None),  # 0.045 nats a token
        (score(-0.16, -0.25), score(-1.0, -1.0), "0.055 nats a token"),
        (score(-0.2, -0.3), score(-1.06, -0.94), None),  # 0.1, where the base differs by 0.06
        (score(-0.3, -0.3), score(-1.06, -0.94), "0.150 nats a token"),
        (score(math.nan, -0.2), score(-1.0, -1.0), "inf nats"),
        (score(-0.1, -0.2, token_ids=(1, 5)), score(-1.0, -1.0), "chat 0 as other tokens, from token 1"),
        (score(-0.1, -0.2, token_ids=(1, 2, 3)), score(-1.0, -1.0), "from token 2"),
    ],
)
def test_tokens_are_the_same_and_log_probabilities_within_the_bound(
    tuned: Score, base: Score, complaint: str | None
) -> None:
    found = probes.compare([PROBE], [tuned], [base])

    assert found is None if complaint is None else complaint in str(found)


def test_there_are_ten_chats_with_systems_tools_and_several_turns() -> None:
    roles = [[message["role"] for message in messages] for messages, _ in probes.CHATS]

    assert len(probes.CHATS) == 10
    assert any("system" in one for one in roles)
    assert any("assistant" in one for one in roles)
    assert any(tools for _, tools in probes.CHATS)
    assert all(one[-1] == "user" for one in roles)


def test_brief_chats_have_a_system_message_several_turns_and_tools() -> None:
    (system, _), (turns, _), (_, tools) = (probes.CHATS[number] for number in probes.BRIEF)

    assert system[0]["role"] == "system"
    assert len(turns) == 3
    assert tools


async def trained(folder: Path, shift: float = 0.0) -> Adapter:
    """Write an adapter whose probes agree with the fake engine except for `shift` nats a token."""
    adapter = Adapter("lora-0123456789abcdef", "0123456789abcdef", folder)
    (folder / "adapter_config.json").write_text("{}")
    engine = FakeEngine()
    await engine.start()
    passages = [Passage(messages, tools, (1, 2, 3)) for messages, tools in probes.CHATS]
    tuned, base = await engine.score("fake-model", passages, adapter), await engine.score("fake-model", passages, None)
    probes.write(
        folder,
        [
            Probe(
                messages=messages,
                tools=tools,
                token_ids=ours.token_ids,
                continuation=(1, 2, 3),
                logprobs=tuple(one + shift for one in ours.logprobs),
                base_logprobs=theirs.logprobs,
            )
            for (messages, tools), ours, theirs in zip(probes.CHATS, tuned, base, strict=True)
        ],
    )
    return adapter


async def test_an_adapter_that_answers_as_its_trainer_says_is_served(tmp_path: Path) -> None:
    adapter, engine = await trained(tmp_path), FakeEngine()
    await engine.start()

    answer = await engine.answer(_request(adapter))

    assert answer.status == 200
    assert adapter.name.encode() in answer.body


async def test_an_adapter_that_answers_otherwise_is_refused_and_the_base_goes_on(tmp_path: Path) -> None:
    adapter, engine = await trained(tmp_path, shift=0.06), FakeEngine()
    await engine.start()

    with pytest.raises(AdapterRefused, match=r"0\.060 nats a token") as caught:
        await engine.answer(_request(adapter))
    assert caught.value.failed_probe
    assert (await engine.answer(_request(None))).status == 200


def _request(adapter: Adapter | None) -> Request:
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]}
    return Request(CHAT, body, "req_1", adapter=adapter)
