"""What an embedding model wants put before a text, by what the text is.

    input_type:  none ──▶ prompt     query ──▶ query_prompt     passage, document ──▶ passage_prompt     raw ──▶ nothing

What models.yaml leaves out is its `prompt`, if it has one, else what the model's own files say, else nothing. Of the
model's own prompts any other (`clustering`) can be asked for by its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

PLAIN, QUERY, PASSAGE = "prompt", "query_prompt", "passage_prompt"
#: The keys of `engine_args`.
ARGUMENTS: Final = (PLAIN, QUERY, PASSAGE)
RAW: Final = "raw"
#: Names that servers and model files have for the two.
QUERIES: Final = ("query", "search_query")
PASSAGES: Final = ("document", "passage", "corpus", "search_document")


@dataclass(frozen=True, slots=True)
class Own:
    """The prompts that a model's files have, by name; `default` names the one that every text gets."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    def first(self, names: tuple[str, ...]) -> str | None:
        """The first of these that says anything."""
        return next((self.prompts[name] for name in names if self.prompts.get(name)), None)


@dataclass(frozen=True, slots=True)
class Prompts:
    plain: str = ""
    query: str = ""
    passage: str = ""
    others: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything is put before any text."""
        return any(self.texts)

    @property
    def texts(self) -> frozenset[str]:
        """Whatever may be put before a text, nothing among it."""
        return frozenset(("", self.plain, self.query, self.passage, *self.others.values()))

    def of(self, input_type: str | None) -> str | None:
        """What is put before a text of this type; None where the type is unknown."""
        if input_type is None:
            return self.plain
        if input_type == RAW:
            return ""
        if input_type in QUERIES:
            return self.query
        return self.passage if input_type in PASSAGES else self.others.get(input_type)

    @property
    def types(self) -> tuple[str, ...]:
        """The input types that can be asked for."""
        return (*QUERIES, *PASSAGES, *(name for name in self.others if name not in (*QUERIES, *PASSAGES)), RAW)


def prompts_of(args: Mapping[str, Any], own: Own | None = None) -> Prompts:
    """By `engine_args`, which come first, and the model's own files."""
    own = own or Own()
    default = own.prompts.get(own.default, "") if own.default else ""
    plain = _given(args, PLAIN)
    return Prompts(
        plain if plain is not None else default,
        _first(_given(args, QUERY), plain, own.first(QUERIES), default),
        _first(_given(args, PASSAGE), plain, own.first(PASSAGES), default),
        {name: text for name, text in own.prompts.items() if text},
    )


def wrong(args: Mapping[str, Any]) -> str:
    """What is wrong with the prompts among `engine_args`, in words; empty when nothing is."""
    strange = [name for name in ARGUMENTS if not isinstance(args.get(name), str | None)]
    return f"{', '.join(strange)} must be text" if strange else ""


def _given(args: Mapping[str, Any], name: str) -> str | None:
    """A key that stands there without a value means that there is to be none."""
    return str(args[name] or "") if name in args else None


def _first(*texts: str | None) -> str:
    return next((text for text in texts if text is not None), "")
