"""Completions that repeat their prompts with the log-probability of each token, for tasks of log-likelihood.

Such a request scores texts and generates next to nothing: lm-evaluation-harness generates one token. So its prompts,
the log-probabilities of a token and the tokens that are generated are bounded together. An engine in this process is
asked one prompt at a time, between which other requests are served.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from jobs.requests.endpoints import COMPLETIONS
from workers.engines.port import Answer, Usage

MAX_PROMPTS: Final = 16
MAX_CHARACTERS: Final = 1 << 17  # of all prompts together; a token id counts as one
MAX_LOGPROBS: Final = 5  # OpenAI's limit for completions
MAX_TOKENS: Final = 16  # generated for each prompt; OpenAI's default for completions


def scores_prompt(url: str, body: Mapping[str, Any]) -> bool:
    """Return whether a completion asks for the log-probabilities of its prompt."""
    return url == COMPLETIONS and body.get("echo") not in (None, False) and body.get("logprobs") is not None


def prompts_of(prompt: Any) -> list[Any]:
    """Return the prompts of a field: a text, or a list of token ids, is one; any other list has one in each item."""
    if not isinstance(prompt, list) or all(isinstance(item, int) for item in prompt):
        return [prompt]
    return prompt


def fault(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first field of such a completion that is beyond its bounds, and the error text; None if none is."""
    if not isinstance(body["echo"], bool):
        return "echo", "echo must be true or false."
    bounds = (("logprobs", MAX_LOGPROBS), ("n", 1), ("best_of", 1), ("max_tokens", MAX_TOKENS))
    for name, maximum in bounds:
        value = body.get(name)
        if value is not None and not (isinstance(value, int) and value <= maximum):
            return name, f"{name} must be at most {maximum} in an echo with logprobs."
    prompts = prompts_of(body.get("prompt"))
    if len(prompts) > MAX_PROMPTS:
        return "prompt", f"An echo with logprobs has at most {MAX_PROMPTS} prompts; this one has {len(prompts)}."
    if sum(len(prompt) for prompt in prompts if isinstance(prompt, str | list)) > MAX_CHARACTERS:
        return "prompt", f"The prompts of an echo with logprobs have at most {MAX_CHARACTERS} characters in all."
    return None


def join_answers(answers: Sequence[Answer]) -> Answer:
    """Return the answers to single prompts as the answer to all of them, with the choices in their order."""
    whole, *others = [msgspec.json.decode(answer.body) for answer in answers]
    for other in others:
        whole["choices"] += other["choices"]
    for index, choice in enumerate(whole["choices"]):
        choice["index"] = index
    usage = sum((answer.usage for answer in answers), Usage())
    whole["usage"] |= {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    return Answer(200, msgspec.json.encode(whole), usage)
