"""Compute the probes of a model in the trainer: tokens, greedy continuations, log-probabilities.

    chats ─▶ ids ─▶ greedy continuation ─┬─▶ log-probabilities of the model ────────────────────┬─▶ probes.json
                                         ├─▶ of its base alone; without an adapter: in bfloat16 ┤
                                         └─▶ with an adapter: of the model in the other dtype ──┘

The continuations are the model's own at the end of an epoch. To compute them takes as long as some steps, so that other
checkpoints have three chats alone, with the continuations of the base, which are computed once. A whole model has no
base: each of its checkpoints, which are few, has all chats with continuations of its own.

See `workers.engines.probes` for what an engine does with them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from msgspec.structs import replace

from workers.engines import probes
from workers.engines.foreign_errors import ForeignCall
from workers.engines.port import Score
from workers.engines.probes import Probe

_NARROW: Final = (torch.bfloat16, torch.float16)
#: Chats that are computed in the other dtype too, where a checkpoint has all: many CPUs emulate bfloat16.
_OTHER_CHATS: Final = 3


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

    def write(self, model: Any, folder: Path, *, own: bool) -> float:
        """Write the probes of a model beside its files; return how far they differ between two dtypes.

        With `own`, and for a whole model, they are all chats with continuations of the model's own.
        """
        own = own or self._is_whole
        with _inference(model):
            written = [self._probe(model, chat, own=own) for chat in self._chats if own or chat.brief]
        # the base of 4 bits is served in another form, and its kernels take no other dtype
        is_quantized = any(weights.dtype is torch.uint8 for weights in model.parameters())
        if not self._is_whole and not is_quantized:
            with _inference(model, torch.no_grad), _alternate_dtype(model):
                for number, probe in enumerate(written[: _OTHER_CHATS if own else 1]):
                    written[number] = replace(probe, other_logprobs=_probe_logprobs(model, probe))
        probes.write(folder, written)
        return probes.dtype_difference(written)

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
        return [Score(probe.token_ids, _probe_logprobs(model, probe)) for probe in known]


def _probe_logprobs(model: Any, probe: Probe) -> tuple[float, ...]:
    """Return the log-probabilities that a model gives to the continuation of a probe."""
    return _logprobs(model, [*probe.token_ids, *probe.continuation], len(probe.token_ids))


@contextmanager
def _alternate_dtype(model: Any) -> Iterator[None]:
    """Let a model compute in bfloat16 where its weights are float32, otherwise in float32.

    For float32 the weights of one layer at a time are float32, so that the memory of the model stays as it is.
    """
    narrow = {
        module: parameters
        for module in model.modules()
        if (parameters := [weights for weights in module.parameters(recurse=False) if weights.dtype in _NARROW])
    }
    if not narrow:
        with torch.autocast(model.device.type, torch.bfloat16):
            yield
        return
    stored: dict[Any, Any] = {}

    def widen(module: Any, _: Any) -> None:
        for parameter in narrow[module]:
            stored[parameter], parameter.data = parameter.data, parameter.data.float()

    def restore(module: Any, *_: Any) -> None:
        for parameter in narrow[module]:
            parameter.data = stored.pop(parameter)

    hooks = [module.register_forward_pre_hook(widen) for module in narrow]
    hooks += [module.register_forward_hook(restore, always_call=True) for module in narrow]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _inference(model: Any, guard: Callable[[], AbstractContextManager[Any]] = torch.inference_mode) -> Iterator[None]:
    training, caching = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        with guard():
            yield
    finally:
        model.config.use_cache = caching
        model.train(training)


def _ids(tokenizer: Any, messages: list[dict[str, Any]], tools: Any) -> list[int] | None:
    """Return the token ids of a chat; None where the model's chat template refuses it."""
    with ForeignCall() as rendering:
        text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    if rendering.error is not None:
        return None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _logprobs(model: Any, ids: Sequence[int], prompt: int) -> tuple[float, ...]:
    """Return the log-probability of each token after the prompt."""
    tokens = torch.tensor([ids], device=model.device)
    predicted = torch.log_softmax(model(input_ids=tokens).logits[0, prompt - 1 : -1].float(), dim=-1)
    return tuple(predicted.gather(1, tokens[0, prompt:, None])[:, 0].tolist())
