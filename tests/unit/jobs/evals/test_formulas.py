"""The arithmetic of `multi` graders, against Python's own where both agree."""

import math

import pytest

from jobs.evals.formulas import Formula, FormulaError

SCORES = {"a": 0.5, "b": 2.0, "zero": 0.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", 0.5),
        ("(a + b) / 2", 1.25),
        ("a + b * 2 - 1", 3.5),
        ("2 ^ 3 ^ 2", 512.0),
        ("-b ^ 2", -4.0),
        ("b ^ -1", 0.5),
        ("10 / 4 / 5", 0.5),
        ("min(a, b, 1)", 0.5),
        ("max(a, b)", 2.0),
        ("abs(-b) + floor(a) + ceil(a)", 3.0),
        ("exp(log(b)) + sqrt(4)", 4.0),
        ("1.5e1\n + a", 15.5),
        ("-" * 100 + "a", 0.5),
    ],
)
def test_a_formula_has_the_value_of_its_arithmetic(text: str, expected: float) -> None:
    assert Formula(text, SCORES).evaluate(SCORES) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "numbers"),
        ("a +", "not an arithmetic expression"),
        ("missing + 1", "names 'missing'"),
        ("a ** b", "numbers"),
        ("a // b", "numbers"),
        ("a if b else 1", "numbers"),
        ("a.real", "numbers"),
        ("a, b", "numbers"),
        ("1j", "numbers"),
        ("True", "numbers"),
        ("...", "numbers"),
        ("__import__(a)", "calls '__import__'"),
        ("pow(a, b)", "calls 'pow'"),
        ("min()", "does not take 0"),
        ("sqrt(a, b)", "does not take 2"),
        ("max(*a)", "numbers"),
        ("lambda: 1", "numbers"),
        ("'a'", "numbers"),
        ("9" * 900, "too large"),
        ("(" * 300 + "a" + ")" * 300, "not an arithmetic expression"),
        ("+".join("a" * 400), "at most 256 parts"),
        ("-" * 900 + "a", "at most 256 parts"),
        ("a" * 1001, "at most 1000 characters"),
    ],
)
def test_invalid_formula_is_refused_before_evaluation(text: str, words: str) -> None:
    with pytest.raises(FormulaError, match=words.replace("(", r"\(")):
        Formula(text, SCORES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a / zero", "divides by zero"),
        ("zero ^ -1", "no value"),
        ("(-1) ^ a", "no value"),
        ("sqrt(-b)", "no value"),
        ("log(zero)", "no value"),
        ("9 ^ 9 ^ 9 ^ 9", "too large"),
        ("exp(1e9)", "too large"),
        ("1e308 * 10 - 1e308 * 10", "not a finite number"),
    ],
)
def test_a_formula_without_a_value_is_an_error_and_no_number(text: str, words: str) -> None:
    with pytest.raises(FormulaError, match=words):
        Formula(text, SCORES).evaluate(SCORES)


def test_infinite_scores_have_no_value() -> None:
    with pytest.raises(FormulaError, match="finite"):
        Formula("a", ["a"]).evaluate({"a": math.inf})
