"""Compute the probes of a model in the trainer: tokens, greedy continuations, log-probabilities.

    chats ─▶ ids ─▶ greedy continuation ─┬─▶ log-probabilities of the model ────────────────────┬─▶ probes.json
                                         └─▶ of its base alone; without an adapter: in bfloat16 ┘

The continuations are the model's own at the end of an epoch. To compute them takes as long as some steps, so that other
checkpoints have three chats alone, with the continuations of the base, which are computed once. A whole model has no
base: each of its checkpoints, which are few, has all chats with continuations of its own.

See `workers.engines.probes` for what an engine does with them.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workers.engines import probes
from workers.engines.port import Score
from workers.engines.probes import Probe


@dataclass(frozen=True, slots=True)
class _Chat:
    """A chat as token ids; a brief one with the base's greedy continuation, and the base's log-probabilities of it."""

    messages: list[dict[str, Any]]
    tools: Any
    ids: list[int]
    brief: bool
    continuation: list[int]
    base_logprobs: tuple[float, ...]


class Prober:
    """The probes of one run. Training goes on afterwards as before."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._pad = tokenizer.eos_token_id
        self._is_whole = not hasattr(model, "disable_adapter")
        self._chats = []
        with _inference(model), self._reference(model):
            for number, (messages, tools) in enumerate(probes.CHATS):
                ids = _ids(tokenizer, messages, tools)
                if ids is not None:
                    brief = number in probes.BRIEF and not self._is_whole
                    continuation = self._continue(model, ids) if brief else []
                    logprobs = _logprobs(model, ids + continuation, len(ids)) if brief else ()
                    self._chats.append(_Chat(messages, tools, ids, brief, continuation, logprobs))

    def write(self, model: Any, folder: Path, *, own: bool) -> None:
        """Write the probes of a model beside its files.

        With `own`, and for a whole model, they are all chats with continuations of the model's own.
        """
        own = own or self._is_whole
        with _inference(model):
            probes.write(folder, [self._probe(model, chat, own=own) for chat in self._chats if own or chat.brief])

    def _reference(self, model: Any) -> AbstractContextManager[Any]:
        """Let the model compute as its base, or a whole model in bfloat16."""
        if self._is_whole:
            precision: AbstractContextManager[Any] = torch.autocast(model.device.type, torch.bfloat16)
            return precision
        base: AbstractContextManager[Any] = model.disable_adapter()
        return base

    def _probe(self, model: Any, chat: _Chat, *, own: bool) -> Probe:
        continuation, base_logprobs = chat.continuation, chat.base_logprobs
        if own:
            continuation = self._continue(model, chat.ids)
            with self._reference(model):
                base_logprobs = _logprobs(model, chat.ids + continuation, len(chat.ids))
        return Probe(
            messages=chat.messages,
            tools=chat.tools,
            token_ids=tuple(chat.ids),
            continuation=tuple(continuation),
            logprobs=_logprobs(model, chat.ids + continuation, len(chat.ids)),
            base_logprobs=base_logprobs,
        )

    def _continue(self, model: Any, ids: list[int]) -> list[int]:
        whole: list[int] = model.generate(
            input_ids=torch.tensor([ids], device=model.device),
            attention_mask=torch.ones((1, len(ids)), dtype=torch.long, device=model.device),
            max_new_tokens=probes.CONTINUATION,
            do_sample=False,
            pad_token_id=self._pad,
        )[0].tolist()
        return whole[len(ids) :]


def score(model: Any, known: Sequence[Probe]) -> list[Score]:
    """Return how a model reads and continues the chats of these probes, as they were tokenised in training."""
    with _inference(model):
        tokens = [([*probe.token_ids, *probe.continuation], len(probe.token_ids)) for probe in known]
        return [Score(tuple(ids[:prompt]), _logprobs(model, ids, prompt)) for ids, prompt in tokens]


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    training, caching = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        with torch.inference_mode():
            yield
    finally:
        model.config.use_cache = caching
        model.train(training)


def _ids(tokenizer: Any, messages: list[dict[str, Any]], tools: Any) -> list[int] | None:
    """Return the token ids of a chat; None where the model's chat template refuses it."""
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    except Exception:  # noqa: BLE001  the template is code of the model's: it raises what it likes
        return None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _logprobs(model: Any, ids: Sequence[int], prompt: int) -> tuple[float, ...]:
    """Return the log-probability of each token after the prompt."""
    tokens = torch.tensor([ids], device=model.device)
    predicted = torch.log_softmax(model(input_ids=tokens).logits[0, prompt - 1 : -1].float(), dim=-1)
    return tuple(predicted.gather(1, tokens[0, prompt:, None])[:, 0].tolist())
