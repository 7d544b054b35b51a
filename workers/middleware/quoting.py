"""Text that others wrote as a model is shown it: as data within what a user says, and never as an instruction.

    Excerpts of files:               ours
    [1]                              ours: what a citation names
    > handbook.pdf, page 3:          theirs, as is every line that begins like this, names of files and sections too
    > Leave is 30 days.

    Question:                        ours
    How many days of leave?          the user's

No text can end its excerpt, begin another or speak for somebody: all its lines are marked, and the words that divide
the turns in templates of chats are broken up. It stands in the message of a user that is there anyway: some templates
take no second one, and what leaves turns out leaves out no excerpts without their question.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from jobs.retrieval.searches import Found

_EXCERPTS: Final = "Excerpts of files:\n"
_QUESTION: Final = "\n\nQuestion:\n"
_LONGEST_TITLE: Final = 240  # characters
#: What divides the turns: Llama 3's, Qwen's and others' `<|im_start|>`, DeepSeek's wide one, Gemma's, and Mistral's.
_TURNS: Final = re.compile(
    r"<(?=[|\uff5c]|/?s>|[be]os>|(?:start|end)_of_turn>|<?/?SYS>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+)\])"
)


def quoted(text: str) -> str:
    """With a mark before each of its lines, whatever it ends them by."""
    return "\n".join(f"> {line}".rstrip() for line in _TURNS.sub(r"\g<0> ", text).splitlines())


def excerpt(number: int, found: Found) -> str:
    """As the model is shown it."""
    return "\n".join([f"[{number}]", quoted(f"{_title(found)}:"), quoted(found.text)])


def with_excerpts(given: Any, found: Sequence[Found]) -> Any:
    """The input of a response with these before what the user said last; without either it stays as it is."""
    if not found:
        return given
    shown = _EXCERPTS + "\n\n".join(excerpt(n, one) for n, one in enumerate(found, 1)) + _QUESTION
    if isinstance(given, str):
        return shown + given
    users = [n for n, item in enumerate(given or ()) if isinstance(item, dict) and item.get("role") == "user"]
    if not users:
        return given
    at = users[-1]
    return [*given[:at], *beginning_with(shown, given[at], "input_text"), *given[at + 1 :]]


def beginning_with(shown: str, item: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """A user's message that says this first, its parts being of that kind; two where it cannot."""
    content = item.get("content")
    if isinstance(content, str):
        return [{**item, "content": shown + content}]
    if isinstance(content, list):
        return [{**item, "content": [{"type": kind, "text": shown}, *content]}]
    return [{"role": "user", "content": shown}, {**item}]


def note(title: str, lines: Iterable[str]) -> str:
    """Of what was said before, each in one line, to stand before what is said now."""
    return "\n".join([title, *(quoted(" ".join(line.split())) or ">" for line in lines)]) + "\n\n"


def divided(text: str) -> tuple[str, str]:
    """The excerpts that a user's message begins with, and what the user said."""
    if not text.startswith(_EXCERPTS):
        return "", text
    shown, asked, said = text.partition(_QUESTION)
    return (shown + asked, said) if asked else ("", text)


def _title(found: Found) -> str:
    section = " > ".join(found.meta.get("section") or ())
    page = f"page {found.meta['page']}" if found.meta.get("page") else ""
    title = ", ".join(filter(None, [found.filename, page, section]))
    return " ".join(title.split())[:_LONGEST_TITLE]
