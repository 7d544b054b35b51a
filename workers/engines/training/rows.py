"""Rows of training files as token ids and labels: loss on the assistant's tokens only, by prefixes of messages.

    messages[:i], generation prompt   <|im_start|>user … <|im_start|>assistant\\n               no loss
    messages[:i + 1]                  <|im_start|>user … <|im_start|>assistant\\nHi.<|im_end|>  loss on what is new
    all messages                      must begin with the ids of each of these

A row whose prefix does not tokenise as the beginning of the whole is refused with its line: its mask would be wrong. So
is a row of tools whose chat template shows none: the model would learn to say nothing.
Messages reach the chat template as vLLM hands them over, so that the trainer and the engine see the same token ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import msgspec

from jobs.finetuning import examples
from workers.engines.foreign_errors import translate_errors

IGNORED: Final = -100  # the label without loss, as torch's cross entropy has it
_decode = msgspec.json.Decoder(dict).decode


class RowRefused(Exception):
    """A row cannot be trained on. `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class RowTooLong(RowRefused):
    """A row has more tokens than can be trained on. It could be truncated."""


def load_tokenizer(folder: str, chat_template: str | None = None) -> tuple[Any, int]:
    """Return the tokenizer of a base, and how many tokens the base can hold. Raises OSError, ValueError.

    A `chat_template` takes the place of the base's own.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    context: int = AutoConfig.from_pretrained(folder, local_files_only=True).max_position_embeddings
    return tokenizer, context


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the rows of a JSONL file with the numbers of their lines. Empty lines count and are not rows."""
    with path.open("rb") as handle:
        for line, raw in enumerate(handle, 1):
            if raw.strip():
                yield line, examples.convert_functions(_decode(raw))


def encode_supervised(
    tokenizer: Any, line: int, row: Mapping[str, Any], longest: int, *, truncate: bool = False
) -> dict[str, list[int]]:
    """Return the ids and labels of a row `{"messages", "tools"?}`, with `truncate` the first `longest` of them.

    Raises RowRefused, RowTooLong.
    """
    messages, tools = _messages(row["messages"]), row.get("tools")
    _check_tools(tokenizer, messages, tools, line)
    ids = _ids(tokenizer, messages, tools, line)
    _check_length(len(ids), longest, line, truncate=truncate)
    labels = [IGNORED] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or row["messages"][index].get("weight") == 0:
            continue
        if index:
            begin = _prefix(tokenizer, messages[:index], tools, ids, line, index, prompt=True)
        else:
            begin = _opening(tokenizer, messages[0], tools, ids, line)
        if begin >= longest:
            break
        end = _prefix(tokenizer, messages[: index + 1], tools, ids, line, index)
        labels[begin:end] = ids[begin:end]
    if all(label == IGNORED for label in labels[:longest]):
        where = f"among the first {longest} tokens" if len(ids) > longest else "to train on"
        raise RowRefused(line, f"There is no assistant message with a weight other than 0 {where}.")
    return {"input_ids": ids[:longest], "labels": labels[:longest]}


def encode_preference(
    tokenizer: Any, line: int, row: Mapping[str, Any], longest: int, *, truncate: bool = False
) -> dict[str, list[int]]:
    """Return the ids of a row `{"input", "preferred_output", "non_preferred_output"}`. Raises RowRefused, RowTooLong.

    The outputs may also be spelled `preferred_completion` and `non_preferred_completion`. With `truncate` they end
    where input and output have `longest` tokens.
    """
    given = row["input"]
    prompt, tools = _messages(given["messages"]), given.get("tools")
    preferred = row.get("preferred_output") or row["preferred_completion"]
    rejected = row.get("non_preferred_output") or row["non_preferred_completion"]
    prompt_ids = _ids(tokenizer, prompt, tools, line, prompt=True)
    if len(prompt_ids) >= longest:
        raise RowTooLong(line, f"The input has {len(prompt_ids)} tokens; at most {longest} can be trained on.")
    answers = {}
    for name, output in (("chosen_ids", preferred), ("rejected_ids", rejected)):
        messages = [*prompt, *_messages(output)]
        _check_tools(tokenizer, messages, tools, line)
        ids = _ids(tokenizer, messages, tools, line)
        _check_length(len(ids), longest, line, truncate=truncate)
        if ids[: len(prompt_ids)] != prompt_ids:
            raise RowRefused(line, "The tokens of the input are not the beginning of the input with an output.")
        answers[name] = ids[len(prompt_ids) : longest]
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


def _text(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any, line: int, *, prompt: bool = False) -> str:
    with _refusals(line):
        text: str = tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=prompt, tokenize=False
        )
    return text


def _ids(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any, line: int, *, prompt: bool = False
) -> list[int]:
    return _tokens(tokenizer, _text(tokenizer, messages, tools, line, prompt=prompt), line)


def _tokens(tokenizer: Any, text: str, line: int) -> list[int]:
    with _refusals(line):
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _refusals(line: int) -> AbstractContextManager[None]:
    """Raise RowRefused for whatever a template or a tokenizer raises, but where memory runs out."""
    message = "The model's chat template refuses the messages"
    return translate_errors(lambda error: RowRefused(line, f"{message}: {error}"), MemoryError)


def _check_length(tokens: int, longest: int, line: int, *, truncate: bool) -> None:
    if tokens > longest and not truncate:
        raise RowTooLong(line, f"The row has {tokens} tokens; at most {longest} can be trained on.")


def _check_tools(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any, line: int) -> None:
    """Raise RowRefused where the chat template writes a row of tools as one without them."""
    calling = any("tool_calls" in message for message in messages)
    if not tools and not calling:
        return
    text = _text(tokenizer, messages, tools, line)
    silent = [{name: value for name, value in message.items() if name != "tool_calls"} for message in messages]
    for name, is_there, others, offered in (
        ("tools", tools, messages, None),
        ("tool_calls", calling, silent, tools),
    ):
        try:
            is_ignored = is_there and _text(tokenizer, others, offered, line) == text
        except RowRefused:  # the template asks for what was left out
            continue
        if is_ignored:
            message = f"The model's chat template knows no tools: it leaves out '{name}'. "
            raise RowRefused(line, f"{message}One that knows them can be given as 'training.chat_template'.")


def _opening(tokenizer: Any, first: Mapping[str, Any], tools: Any, whole: Sequence[int], line: int) -> int:
    """Return how many tokens precede the text of an assistant message that begins a conversation.

    They end with the template's generation prompt, perhaps behind a system message of the template's own.
    """
    anyone = [{"role": "user", "content": "Hi"}]
    asked = _text(tokenizer, anyone, tools, line)
    generation = _text(tokenizer, anyone, tools, line, prompt=True).removeprefix(asked)
    before, opening, _ = _text(tokenizer, [first], tools, line).partition(generation or "\0")
    ids = _tokens(tokenizer, before + opening, line)
    if not opening or list(whole[: len(ids)]) != ids:
        raise RowRefused(line, "messages[0]: the chat template does not begin an answer with its generation prompt.")
    return len(ids)


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
