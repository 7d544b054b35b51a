"""Criteria of evals from the terms of Promptfoo's assertions: negations, weighted means, `multi` graders."""

from collections.abc import Sequence
from typing import Final

from cli.migrate.promptfoo.assertions import NEGATABLE, REASONS, RULES, Assertion, Term, combine
from cli.migrate.promptfoo.files import NoCounterpart, Object

_MAX_GRADERS: Final = 20
_MAX_FORMULA: Final = 1000
_MAX_NAME: Final = 200
#: A score below all others.
_BELOW_ALL: Final = -1e300


def term_of(assertion: Assertion) -> Term:
    """Return the term of an assertion. Raises: NoCounterpart."""
    if assertion.definition.get("transform"):
        raise NoCounterpart("its transform changes the output first")
    base = assertion.kind.removeprefix("not-")
    rule = RULES.get(base)
    if rule is None:
        redteam = (
            "red-team tests have no grader here" if base.startswith("promptfoo:redteam:") else "it is no known type"
        )
        raise NoCounterpart(REASONS.get(base, redteam))
    if base == assertion.kind:
        return rule(assertion)
    if not NEGATABLE.fullmatch(base):
        raise NoCounterpart("what a negation of it means depends on Promptfoo's version")
    if base == "llm-rubric" and assertion.threshold is not None:
        raise NoCounterpart("it has a threshold and a negation")
    term = rule(assertion)
    match term:
        case Term(graders=({"type": "string_check", "operation": "eq"} as grader,), formula="{0}"):
            return Term((grader | {"operation": "ne"},))
    return Term(term.graders, f"(1 - {term.formula})", None if term.threshold is None else 1 - term.threshold)


def mean_of(terms: Sequence[Term], weights: Sequence[float], threshold: float | None) -> Term:
    """Return the weighted mean of terms. Raises: NoCounterpart."""
    formulas, graders = combine([term for term, weight in zip(terms, weights, strict=True) if weight])
    total = sum(weights)
    if not formulas or total <= 0:
        raise NoCounterpart("its weights have no sum above 0")
    used = [weight for weight in weights if weight]
    summed = " + ".join(
        formula if weight == 1 else f"{formula} * {weight!r}" for formula, weight in zip(formulas, used, strict=True)
    )
    return Term(graders, f"(({summed}) / {total!r})", threshold)


def criterion(name: str, term: Term, *, never_fails: bool = False) -> Object:
    """Return the criterion of a term: its grader, or a `multi` of several. Raises: NoCounterpart."""
    threshold = _BELOW_ALL if never_fails else term.threshold
    has_threshold = threshold is not None
    if term.formula == "{0}" and not never_fails:
        return {"name": name[:_MAX_NAME], **term.graders[0]} | ({"pass_threshold": threshold} if has_threshold else {})
    keys = [f"g{number}" for number in range(1, len(term.graders) + 1)]
    formula = term.formula.format(*keys)
    if len(keys) > _MAX_GRADERS or len(formula) > _MAX_FORMULA:
        raise NoCounterpart(
            f"it has more than {_MAX_GRADERS} comparisons, or a formula of more than {_MAX_FORMULA} characters"
        )
    graders = {key: {"name": key, **grader} for key, grader in zip(keys, term.graders, strict=True)}
    made = {"name": name[:_MAX_NAME], "type": "multi", "graders": graders, "calculate_output": formula}
    return made | ({"pass_threshold": threshold} if has_threshold else {})
