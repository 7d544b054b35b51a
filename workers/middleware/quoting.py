"""Quote text of others as data within a user's message, so that a model does not take it for an instruction.

    Excerpts of files:               written here
    [1]                              written here: the number that a citation names
    > handbook.pdf, page 3:          quoted, like every line with this mark: text, names of files and of sections
    > Leave is 30 days.

    Question:                        written here
    How many days of leave?          the user's

Quoted text cannot end its excerpt, begin another one or speak in another role: all its lines are marked, and the
separators of chat templates are broken up. It is put into an existing user message: some templates refuse a second one
in a row, and excerpts are then dropped together with their question.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from jobs.retrieval.searches import FoundChunk

_EXCERPTS: Final = "Excerpts of files:\n"
_QUESTION: Final = "\n\nQuestion:\n"
_MAX_TITLE: Final = 240  # characters
#: Separators of turns: those of Llama 3, Qwen and others (`<|im_start|>`), DeepSeek (wide), Gemma, and Mistral.
_TURNS: Final = re.compile(
    r"<(?=[|\uff5c]|/?s>|[be]os>|(?:start|end)_of_turn>|<?/?SYS>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+)\])"
)


def quote(text: str) -> str:
    """Return the text with a mark before each line, whatever ends its lines."""
    return "\n".join(f"> {line}".rstrip() for line in _TURNS.sub(r"\g<0> ", text).splitlines())


def excerpt(number: int, chunk: FoundChunk) -> str:
    """Return an excerpt as the model sees it."""
    return "\n".join([f"[{number}]", quote(f"{_title(chunk)}:"), quote(chunk.text)])


def add_excerpts(prompt: Any, chunks: Sequence[FoundChunk]) -> Any:
    """Return the input of a response with excerpts before the user's last message; unchanged if either is missing."""
    if not chunks:
        return prompt
    shown = _EXCERPTS + "\n\n".join(excerpt(n, chunk) for n, chunk in enumerate(chunks, 1)) + _QUESTION
    if isinstance(prompt, str):
        return shown + prompt
    users = [n for n, item in enumerate(prompt or ()) if isinstance(item, dict) and item.get("role") == "user"]
    if not users:
        return prompt
    at = users[-1]
    return [*prompt[:at], *prepend(shown, prompt[at], "input_text"), *prompt[at + 1 :]]


def prepend(shown: str, item: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return a user's message that begins with `shown`, as a part of type `kind`.

    Return two messages if the content is neither a string nor a list.
    """
    content = item.get("content")
    if isinstance(content, str):
        return [{**item, "content": shown + content}]
    if isinstance(content, list):
        return [{**item, "content": [{"type": kind, "text": shown}, *content]}]
    return [{"role": "user", "content": shown}, {**item}]


def note(title: str, lines: Iterable[str]) -> str:
    """Return a note of earlier messages, one quoted line each, to stand before a new message."""
    return "\n".join([title, *(quote(" ".join(line.split())) or ">" for line in lines)]) + "\n\n"


def split_message(text: str) -> tuple[str, str]:
    """Split a user's message into its excerpts and the user's own text."""
    if not text.startswith(_EXCERPTS):
        return "", text
    shown, separator, own_text = text.partition(_QUESTION)
    return (shown + separator, own_text) if separator else ("", text)


def _title(chunk: FoundChunk) -> str:
    section = " > ".join(chunk.meta.get("section") or ())
    page = f"page {chunk.meta['page']}" if chunk.meta.get("page") else ""
    title = ", ".join(filter(None, [chunk.filename, page, section]))
    return " ".join(title.split())[:_MAX_TITLE]
