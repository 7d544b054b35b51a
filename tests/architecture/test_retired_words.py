"""Words that the project has retired stay out of it: a name is the field's standard term, or stands in the glossary.

Only words without another meaning are listed, so that each hit is a mistake. Migrations and their tests keep the names
of their time, the change log reports them, and data is written by others.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: A retired word, wherever it is a word or a part of an identifier, and what is said instead.
WORDS = {
    "bury": "handle the death of a worker",
    "buries": "handle the death of a worker",
    "buried": "handle the death of a worker",
    "condemn": "mark for deletion",
    "courtesy": "batch throttle",
    "desk": "interactive consumer",
    "desks": "interactive consumers",
    "doomed": "pending deletion",
    "doorbell": "outbox message",
    "doorbells": "outbox messages",
    "haste": "priority",
    "housekeeper": "maintenance",
    "housekeeping": "maintenance",
    "mourn": "handle the death of a process",
    "mourner": "guard",
    "obituary": "exit description",
    "peal": "message batch",
    "peals": "message batches",
    "rering": "redelivery",
    "ringer": "publisher",
    "rude": "without priority",
    "rung": "published",
    "stumble": "failed attempt",
    "stumbles": "failed attempts",
    "unheard": "unclaimed",
    "unrung": "unpublished",
    "warden": "engine health",
}
#: Retired identifiers, and parts of them, whose words have other meanings when they stand alone.
NAMES = {
    "Fenced": "ClaimLost",
    "Housekeep": "Maintenance",
    "TOGETHER": "SHARDS_PER_SLOT",
    "give_back": "release",
    "put_back": "release",
    "reads_from": "set_retry_input",
    "trying_line": "isolated_line",
    "trying_times": "isolated_attempts",
    "words_child": "log_tail",
}
#: Names that say nothing about a value. No variable, parameter, field or function of the product has one of them.
EMPTY_NAMES = {"found", "mine", "most", "one", "place", "said", "told", "wanted"}
PRODUCT = ("api", "jobs", "workers", "cli")
_OTHERS = re.compile(
    r".*/text_metrics\.json|CHANGELOG\.md|LICENSE|constraints|(.*/)?data/"
    r"|jobs/renamed_settings\.py|docs/operate/upgrade\.md"
)
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def _retired(text: str) -> dict[str, str]:
    """Return the retired words and names in `text`, each with what is said instead."""
    words = {part.lower() for part in _PARTS.findall(text)} & WORDS.keys()
    return {word: WORDS[word] for word in words} | {name: NAMES[name] for name in NAMES if name in text}


def test_retired_words_stay_out() -> None:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    hits = {}
    for name in names:
        path = ROOT / name
        if not path.is_file() or _OTHERS.match(name) or path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture, say
            continue
        if found := _retired(f"{name}\n{text}"):
            hits[name] = found

    assert hits == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Doorbell rings.", ["doorbell"]),
        ("class CeleryRinger:", ["ringer"]),
        ("row.rung_at is None", ["rung"]),
        ("raise Fenced", ["Fenced"]),
        ("an appeal that was wrung from the prudent; a write is fenced", []),
    ],
)
def test_a_word_is_found_in_prose_and_in_identifiers(text: str, found: list[str]) -> None:
    assert list(_retired(text)) == found


def _bound_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each binding in `source`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def test_product_binds_no_meaningless_name() -> None:
    hits = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for package in PRODUCT
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in _bound_names(path.read_text(encoding="utf-8"))
        if name in EMPTY_NAMES
    ]

    assert hits == []


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "def f(found): pass",
        "def found(): pass",
        "[found for found in x]",
        "lambda found: 1",
        "class A:\n    found: int",
        "try: pass\nexcept E as found: pass",
        "match x:\n    case [found]: pass",
        "(found := 1)",
        "for a, found in x: pass",
    ],
)
def test_every_form_of_binding_is_detected(source: str) -> None:
    assert "found" in [name for _, name in _bound_names(source)]
