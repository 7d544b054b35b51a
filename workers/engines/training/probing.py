"""Compute the probes of a model in the trainer: tokens, greedy continuations, log-probabilities.

    chats ─▶ ids ─▶ greedy continuation ─┬─▶ log-probabilities with the adapter ─┬─▶ probes.json
                                         └─▶ and of the base alone ──────────────┘

See `workers.engines.probes` for what an engine does with them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from workers.engines import probes
from workers.engines.probes import Probe


def write(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the probes of a model with an adapter beside its files. Training goes on afterwards as before."""
    with _inference(model):
        candidates = (_probe(model, tokenizer, messages, tools) for messages, tools in probes.CHATS)
        probes.write(folder, [probe for probe in candidates if probe is not None])


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


def _probe(model: Any, tokenizer: Any, messages: list[dict[str, Any]], tools: Any) -> Probe | None:
    """Return the probe of one chat; None where the model's chat template refuses it."""
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    except Exception:  # noqa: BLE001  the template is code of the model's: it raises what it likes
        return None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = model.generate(
        input_ids=torch.tensor([ids], device=model.device),
        attention_mask=torch.ones((1, len(ids)), dtype=torch.long, device=model.device),
        max_new_tokens=probes.CONTINUATION,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )[0].tolist()
    base = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    logprobs = _logprobs(model, whole, len(ids))
    with base:
        base_logprobs = _logprobs(model, whole, len(ids))
    return Probe(
        messages=messages,
        tools=tools,
        token_ids=tuple(ids),
        continuation=tuple(whole[len(ids) :]),
        logprobs=logprobs,
        base_logprobs=base_logprobs,
    )


def _logprobs(model: Any, ids: Sequence[int], prompt: int) -> tuple[float, ...]:
    """Return the log-probability of each token after the prompt."""
    tokens = torch.tensor([ids], device=model.device)
    predicted = torch.log_softmax(model(input_ids=tokens).logits[0, prompt - 1 : -1].float(), dim=-1)
    return tuple(predicted.gather(1, tokens[0, prompt:, None])[:, 0].tolist())
