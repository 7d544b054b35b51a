"""Prompts stand before a text by its type: those of models.yaml, else of the model's own files."""

from typing import Any

import pytest

from jobs.requests.embedding_prompts import Own, prompts_of

OWN = Own({"query": "Q: ", "document": "D: ", "clustering": "C: ", "plain": "P: "}, "plain")

CHOSEN: dict[str, tuple[dict[str, Any], Own, tuple[str, str, str]]] = {
    "nothing": ({}, Own(), ("", "", "")),
    "the model's own": ({}, OWN, ("P: ", "Q: ", "D: ")),
    "the model's own, called passage": ({}, Own({"passage": "D: "}), ("", "", "D: ")),
    "the model's default for all": ({}, Own({"plain": "P: "}, "plain"), ("P: ", "P: ", "P: ")),
    "empty ones of the model's are none": (
        {},
        Own({"query": "", "document": "", "plain": "P: "}, "plain"),
        ("P: ",) * 3,
    ),
    "a default that is not there": ({}, Own({"query": "Q: "}, "other"), ("", "Q: ", "")),
    "one for all": ({"prompt": "x: "}, OWN, ("x: ", "x: ", "x: ")),
    "two": ({"query_prompt": "q: ", "passage_prompt": "p: "}, Own(), ("", "q: ", "p: ")),
    "one of two, and the model's": ({"query_prompt": "q: "}, OWN, ("P: ", "q: ", "D: ")),
    "one of two, and one for all": ({"query_prompt": "q: ", "prompt": "x: "}, OWN, ("x: ", "q: ", "x: ")),
    "none, said so": ({"query_prompt": "", "passage_prompt": None, "prompt": ""}, OWN, ("", "", "")),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_prompts_of_the_models_file_come_before_the_models_own(case: str) -> None:
    args, own, expected = CHOSEN[case]

    found = prompts_of(args, own)

    assert (found.plain, found.query, found.passage) == expected


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [
        (None, "P: "), ("query", "Q: "), ("search_query", "Q: "), ("passage", "D: "), ("document", "D: "),
        ("search_document", "D: "), ("clustering", "C: "), ("raw", ""), ("poem", None), ("", None),
    ],
)  # fmt: skip
def test_type_of_a_text_says_which_prompt(input_type: str | None, prompt: str | None) -> None:
    assert prompts_of({}, OWN).of(input_type) == prompt


def test_model_without_prompts_says_so() -> None:
    assert not prompts_of({"prompt": ""}, Own({"query": "", "document": ""}))
    assert prompts_of({"passage_prompt": "p: "})
