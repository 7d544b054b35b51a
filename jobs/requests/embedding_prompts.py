"""The prompt that an embedding model needs before a text, by the type of the text.

    input_type:  none ──▶ prompt     query ──▶ query_prompt     passage, document ──▶ passage_prompt     raw ──▶ nothing

A prompt that models.yaml lacks is its `prompt`, otherwise the one of the model's own files, otherwise empty. Other
prompts of the model's files (`clustering`) can be requested by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

PLAIN, QUERY, PASSAGE = "prompt", "query_prompt", "passage_prompt"
#: The keys of `engine_args`.
ARGUMENTS: Final = (PLAIN, QUERY, PASSAGE)
RAW: Final = "raw"
#: Names of the two types at servers and in model files.
QUERIES: Final = ("query", "search_query")
PASSAGES: Final = ("document", "passage", "corpus", "search_document")


@dataclass(frozen=True, slots=True)
class Own:
    """The prompts of a model's files, by name; `default` names the one for every text."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    def first(self, names: tuple[str, ...]) -> str | None:
        """Return the first non-empty prompt of these names."""
        return next((self.prompts[name] for name in names if self.prompts.get(name)), None)


@dataclass(frozen=True, slots=True)
class Prompts:
    plain: str = ""
    query: str = ""
    passage: str = ""
    others: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Return whether any text gets a prompt."""
        return any(self.texts)

    @property
    def texts(self) -> frozenset[str]:
        """Return all texts that may stand before a text, the empty one included."""
        return frozenset(("", self.plain, self.query, self.passage, *self.others.values()))

    def of(self, input_type: str | None) -> str | None:
        """Return the prompt of a text of this type; None if the type is unknown."""
        if input_type is None:
            return self.plain
        if input_type == RAW:
            return ""
        if input_type in QUERIES:
            return self.query
        return self.passage if input_type in PASSAGES else self.others.get(input_type)

    @property
    def types(self) -> tuple[str, ...]:
        """Return the supported input types."""
        return (*QUERIES, *PASSAGES, *(name for name in self.others if name not in (*QUERIES, *PASSAGES)), RAW)


def prompts_of(args: Mapping[str, Any], own: Own | None = None) -> Prompts:
    """Return the prompts by `engine_args`, which take precedence, and the model's own files."""
    own = own or Own()
    default = own.prompts.get(own.default, "") if own.default else ""
    plain = _prompt_of(args, PLAIN)
    return Prompts(
        plain if plain is not None else default,
        _first(_prompt_of(args, QUERY), plain, own.first(QUERIES), default),
        _first(_prompt_of(args, PASSAGE), plain, own.first(PASSAGES), default),
        {name: text for name, text in own.prompts.items() if text},
    )


def wrong(args: Mapping[str, Any]) -> str:
    """Return what is wrong with the prompts in `engine_args`; an empty text if nothing is."""
    strange = [name for name in ARGUMENTS if not isinstance(args.get(name), str | None)]
    return f"{', '.join(strange)} must be text" if strange else ""


def _prompt_of(args: Mapping[str, Any], name: str) -> str | None:
    """Return a key's prompt; a key without a value is an empty prompt."""
    return str(args[name] or "") if name in args else None


def _first(*texts: str | None) -> str:
    return next((text for text in texts if text is not None), "")
