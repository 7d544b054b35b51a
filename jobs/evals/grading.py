"""Compute the grades of one item: pure functions of the item, the sample and what models answered.

requests_of(grader, item, sample) ─▶ requests to judges and embedding models, by key
                                        │ answered by whoever calls: a sampling job, or an interactive request
grade(grader, item, sample, answers) ◀──┘ ─▶ Grade: a score and whether it passes, or an error
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.evals.graders import Grader
from jobs.evals.graders.base import Grade, GradingBudget, GradingCase, ModelAnswer, ModelRequest, Ports, Values
from jobs.evals.graders.messages import Message


def requests_of(grader: Grader, item: Values, sample: Values, ports: Ports = Ports()) -> list[ModelRequest]:
    """Return the requests that a grader needs answered before it can grade this item."""
    return grader.requests(GradingCase(item, sample, ports))


def grade(
    grader: Grader,
    item: Values,
    sample: Values,
    answers: Mapping[str, ModelAnswer],
    ports: Ports = Ports(),
    budget: GradingBudget | None = None,
) -> Grade:
    """Grade an item. `answers` are those to the requests of `requests_of`, by key.

    All graders of an item share its `budget`. Without one this grader has all of it.
    """
    return grader.grade(GradingCase(item, sample, ports, answers, budget or GradingBudget()))


def chat_messages(messages: Sequence[Message], item: Values, sample: Values) -> list[dict[str, Any]]:
    """Return messages as chat completions have them, with the values of their placeholders.

    Raises: GradingError, for a placeholder without a value.
    """
    case = GradingCase(item, sample)
    return [message.fill(case) for message in messages]
