"""Rows of training files as token ids and labels: loss on the assistant's tokens only, by prefixes of messages.

    messages[:i], generation prompt   <|im_start|>user … <|im_start|>assistant\\n               no loss
    messages[:i + 1]                  <|im_start|>user … <|im_start|>assistant\\nHi.<|im_end|>  loss on what is new
    all messages                      must begin with the ids of each of these

A row whose prefix does not tokenise as the beginning of the whole is refused with its line: its mask would be wrong.
Messages reach the chat template as vLLM hands them over, so that the trainer and the engine see the same token ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

IGNORED: Final = -100  # the label without loss, as torch's cross entropy has it
_decode = msgspec.json.Decoder(dict).decode


class RowRefused(Exception):
    """A row cannot be trained on. `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def load_tokenizer(folder: str) -> tuple[Any, int]:
    """Return the tokenizer of a base, and how many tokens the base can hold. Raises OSError, ValueError."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    context: int = AutoConfig.from_pretrained(folder, local_files_only=True).max_position_embeddings
    return tokenizer, context


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the rows of a JSONL file with the numbers of their lines. Empty lines count and are not rows."""
    with path.open("rb") as handle:
        for line, raw in enumerate(handle, 1):
            if raw.strip():
                yield line, _decode(raw)


def encode_supervised(tokenizer: Any, line: int, row: Mapping[str, Any], longest: int) -> dict[str, list[int]]:
    """Return the ids and labels of a row `{"messages", "tools"?}`. Raises RowRefused."""
    messages, tools = _messages(row["messages"]), row.get("tools")
    ids = _within(_ids(tokenizer, messages, tools, line), longest, line)
    labels = [IGNORED] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or row["messages"][index].get("weight") == 0:
            continue
        begin = _prefix(tokenizer, messages[:index], tools, ids, line, index, prompt=True)
        end = _prefix(tokenizer, messages[: index + 1], tools, ids, line, index)
        labels[begin:end] = ids[begin:end]
    if all(label == IGNORED for label in labels):
        raise RowRefused(line, "There is no assistant message with a weight other than 0 to train on.")
    return {"input_ids": ids, "labels": labels}


def encode_preference(tokenizer: Any, line: int, row: Mapping[str, Any], longest: int) -> dict[str, list[int]]:
    """Return the ids of a row `{"input", "preferred_output", "non_preferred_output"}`. Raises RowRefused.

    The outputs may also be spelled `preferred_completion` and `non_preferred_completion`.
    """
    given = row["input"]
    prompt, tools = _messages(given["messages"]), given.get("tools")
    preferred = row.get("preferred_output") or row["preferred_completion"]
    rejected = row.get("non_preferred_output") or row["non_preferred_completion"]
    prompt_ids = _ids(tokenizer, prompt, tools, line, prompt=True)
    answers = {}
    for name, output in (("chosen_ids", preferred), ("rejected_ids", rejected)):
        ids = _within(_ids(tokenizer, [*prompt, *_messages(output)], tools, line), longest, line)
        if ids[: len(prompt_ids)] != prompt_ids:
            raise RowRefused(line, "The tokens of the input are not the beginning of the input with an output.")
        answers[name] = ids[len(prompt_ids) :]
    return {"prompt_ids": prompt_ids, **answers}


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [_message(message) for message in messages]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as the engine hands it to the chat template: one text, arguments of tools as objects."""
    content = message.get("content")
    if not isinstance(content, str):
        content = "\n".join(part.get("text", "") for part in content or ())
    known = {name: message[name] for name in ("name", "tool_call_id") if message.get(name) is not None}
    ready = {"role": message["role"], "content": content, **known}
    if message.get("tool_calls"):
        ready["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
    return ready


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = _decode(arguments)
        except msgspec.MsgspecError:
            arguments = {}
    return {**call, "function": {**function, "arguments": arguments}}


def _ids(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any, line: int, *, prompt: bool = False
) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=prompt, tokenize=False
        )
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    except MemoryError:
        raise
    except Exception as error:  # the template is code of the model's: it raises what it likes
        raise RowRefused(line, f"The model's chat template refuses the messages: {error}") from error
    return ids


def _within(ids: list[int], longest: int, line: int) -> list[int]:
    if len(ids) > longest:
        raise RowRefused(line, f"The row has {len(ids)} tokens; at most {longest} can be trained on.")
    return ids


def _prefix(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Any,
    whole: Sequence[int],
    line: int,
    index: int,
    *,
    prompt: bool = False,
) -> int:
    """Return how many tokens the first messages have. Raises RowRefused where they do not begin the whole."""
    ids = _ids(tokenizer, messages, tools, line, prompt=prompt)
    if list(whole[: len(ids)]) != ids:
        part = "before" if prompt else "up to"
        raise RowRefused(
            line, f"messages[{index}]: the tokens {part} this message are not the beginning of those of the whole row."
        )
    return len(ids)
