"""Probes: the same tokens, and log-probabilities within the bound."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fake_engine import FakeEngine
from workers.engines import probes
from workers.engines.port import Adapter, AdapterRefused, Passage, Request, Score
from workers.engines.probes import Probe

#: In another dtype the trainer's own log-probabilities differ by 0.04 nats a token: 0.12 are allowed.
NOISY = Probe(
    messages=[], token_ids=(1, 2), continuation=(3, 4), logprobs=(-0.1, -0.2), base_logprobs=(-1.0, -1.0),
    other_logprobs=(-0.14, -0.16),
)  # fmt: skip
PROBE = Probe(messages=[], token_ids=(1, 2), continuation=(3, 4), logprobs=(-0.1, -0.2), base_logprobs=(-1.0, -1.0))
CHAT = "/v1/chat/completions"


def score(*logprobs: float, token_ids: tuple[int, ...] = (1, 2)) -> Score:
    return Score(token_ids, logprobs)


@pytest.mark.parametrize(
    ("probe", "tuned", "base", "verdict", "text"),
    [
        (PROBE, score(-0.1, -0.2), score(-1.0, -1.0), "served", ""),
        (PROBE, score(-0.14, -0.25), score(-1.0, -1.0), "served", ""),  # 0.045 nats a token
        (PROBE, score(-0.16, -0.25), score(-1.0, -1.0), "warned", "0.055 nats a token"),
        (PROBE, score(-0.2, -0.3), score(-1.06, -0.94), "served", ""),  # 0.1, where the base differs by 0.06
        (PROBE, score(-0.3, -0.3), score(-1.06, -0.94), "warned", "0.150 nats a token"),
        (PROBE, score(-0.5, -0.78), score(-1.0, -1.0), "warned", "0.490 nats a token"),
        (PROBE, score(-0.6, -0.8), score(-1.0, -1.0), "refused", "0.550 nats a token between trainer"),
        (PROBE, score(-0.7, -0.8), score(-1.3, -0.7), "served", ""),  # the base differs by 0.3: 0.6 are allowed
        (NOISY, score(-0.2, -0.31), score(-1.0, -1.0), "served", ""),  # 0.105
        (NOISY, score(-0.2, -0.36), score(-1.0, -1.0), "warned", "and engine; 0.120 are allowed"),
        (PROBE, score(math.nan, -0.2), score(-1.0, -1.0), "refused", "inf nats"),
        (PROBE, score(-0.1, -0.2, token_ids=(1, 5)), score(-1.0, -1.0), "refused", "other tokens, from token 1"),
        (PROBE, score(-0.1, -0.2, token_ids=(1, 2, 3)), score(-1.0, -1.0), "refused", "from token 2"),
    ],
)
def test_a_model_is_refused_for_other_tokens_or_half_a_nat_and_served_with_a_warning_before(
    probe: Probe, tuned: Score, base: Score, verdict: str, text: str
) -> None:
    found = probes.compare([probe], [tuned], [base])

    differs = "warned" if found.difference > found.allowed else "served"
    assert ("refused" if found.is_refused else differs) == verdict
    assert text in str(found)


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
    adapter, engine = await trained(tmp_path, shift=0.6), FakeEngine()
    await engine.start()

    with pytest.raises(AdapterRefused, match=r"0\.600 nats a token.*0\.050 are allowed") as caught:
        await engine.answer(_request(adapter))
    assert caught.value.failed_probe
    assert (await engine.answer(_request(None))).status == 200
    assert (await engine.answer(_request(replace(adapter, trial=1, accepted=True)))).status == 200


async def test_an_adapter_that_differs_a_little_is_served_and_the_log_has_the_figures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter, engine = await trained(tmp_path, shift=0.09), FakeEngine()
    await engine.start()

    assert (await engine.answer(_request(adapter))).status == 200
    [record] = [record for record in caplog.records if record.message == "adapter_differs"]
    assert "0.090 nats a token" in str(record.__dict__["reason"])


def _request(adapter: Adapter | None) -> Request:
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]}
    return Request(CHAT, body, "req_1", adapter=adapter)
