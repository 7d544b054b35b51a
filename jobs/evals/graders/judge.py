"""Let a model decide: the parts that graders with a judge have in common.

A judge is asked for a JSON object with `steps`, its reasoning, and `result`, its decision, by a schema. A judge that
answers anything else gives no score. Where items say what a person decided (`human`), a run has the agreement of both.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, Literal

from pydantic import Field

from jobs.evals import templates
from jobs.evals.graders.base import (
    JUDGE_PARSE,
    JUDGE_REFUSAL,
    SHOWN,
    TRUNCATED,
    Definition,
    Grade,
    Grader,
    GradingCase,
    GradingError,
    ModelName,
    Template,
    Values,
)
from jobs.evals.graders.messages import Messages
from jobs.evals.token_limit import TokenLimit
from jobs.requests.endpoints import CHAT

#: Tokens of a judge's answer where the grader names no other limit.
JUDGE_TOKENS: Final = 1024
_MAX_STEPS: Final = 8  # of a judge's reasoning
_PASSES: Final = ("pass", "fail")


class SamplingParams(TokenLimit, Definition):
    """Parameters of a judge's requests."""

    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)


class Judge(Grader):
    """Base of the graders that ask a model.

    `human` is the verdict of a person on the item, one of `verdicts`. An item without one has no part in the agreement.
    """

    human: Template | None = None

    @property
    def verdicts(self) -> list[str]:
        """Return the verdicts by which the judge is compared with a person."""
        return list(_PASSES)

    @property
    def classes(self) -> list[str]:
        return [] if self.human is None else self.verdicts

    def grade(self, case: GradingCase) -> Grade:
        """Return the grade of a case, with the verdicts of a person and of the judge where there are both."""
        graded = super().grade(case)
        person = None if self.human is None or graded.score is None else self._human_verdict(self.human, case)
        if person not in self.verdicts:
            return graded
        return replace(graded, details={**graded.details, "expected": person, "predicted": self.judge_verdict(graded)})

    def _human_verdict(self, template: str, case: GradingCase) -> str | None:
        """Return the verdict of a person: one of `verdicts`, or true, false or a score for `pass` and `fail`.

        None where the item has no such field, or anything else in it.
        """
        try:
            value = case.value_of(template)
            if isinstance(value, bool):
                return _PASSES[not value]
            text = templates.to_text(value)
            return text if text in self.verdicts else _PASSES[not self.passes(float(text))]
        except (GradingError, ValueError):
            return None

    def judge_verdict(self, graded: Grade) -> str:
        """Return the verdict of the judge."""
        return _PASSES[not graded.passed]

    def models(self, _embedding_model: str | None) -> list[tuple[str, str]]:
        model = self._judge()
        return [] if model is None else [(CHAT, model)]

    def request(self, case: GradingCase) -> tuple[str, dict[str, Any]] | None:
        if self._judge() is None:
            return None
        messages, (task, result) = self.judge_messages(case), self.task(case)
        step = object_schema({"description": {"type": "string"}, "conclusion": {"type": "string"}})
        steps = {"type": "array", "items": step, "maxItems": _MAX_STEPS}
        schema = {"name": "grade", "strict": True, "schema": object_schema({"steps": steps, "result": result})}
        instruction = (
            f"{task} Answer with a JSON object that has two fields: 'steps', a list of objects with the texts "
            "'description' and 'conclusion', is your reasoning; 'result' is your decision."
        )
        body = {
            "model": self._judge(),
            "messages": _add_instruction(messages, instruction),
            "response_format": {"type": "json_schema", "json_schema": schema},
            **self._sampling(),
        }
        return CHAT, body

    def score(self, case: GradingCase) -> tuple[float, Values]:
        """Return the score by what the judge answered, and the answer. Raises: GradingError."""
        if case.key not in case.answers:
            self.judge_messages(case)  # raises the error of a template that has no value
        text = _text_of(case.answer_body())
        try:
            verdict = json.loads(text)
            score = self.score_result(verdict["result"], case)
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise GradingError(JUDGE_PARSE, f"The judge's answer has no valid result: {text[:SHOWN]!r}") from error
        return score, {name: verdict[name] for name in ("result", "steps") if name in verdict}

    def judge_messages(self, case: GradingCase) -> list[dict[str, Any]]:
        """Return the messages to the judge. Raises: GradingError, for a placeholder without a value."""
        raise NotImplementedError

    def task(self, case: GradingCase) -> tuple[str, Values]:
        """Return what the judge is to do, and the JSON schema of the result. Raises: GradingError."""
        raise NotImplementedError

    def score_result(self, result: Any, case: GradingCase) -> float:
        """Return the score by the judge's result. Raises: ValueError, for a result that is not valid."""
        raise NotImplementedError

    def _judge(self) -> str | None:
        model: str | None = getattr(self, "model", None)
        return model

    def _sampling(self) -> dict[str, Any]:
        params: SamplingParams | None = getattr(self, "sampling_params", None)
        return {"temperature": 0, "max_completion_tokens": JUDGE_TOKENS} | (params.to_params() if params else {})


class PromptedJudge(Judge):
    """A grader whose judge gets messages of the client's."""

    model: ModelName
    input: Messages

    def templates(self) -> Iterator[str]:
        for message in self.input:
            yield from (part.template for part in message.parts)

    def judge_messages(self, case: GradingCase) -> list[dict[str, Any]]:
        return [message.fill(case) for message in self.input]


def object_schema(properties: Values) -> dict[str, Any]:
    """Return the JSON schema of an object that has all of these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _add_instruction(messages: list[dict[str, Any]], instruction: str) -> list[dict[str, Any]]:
    """Return the messages with the instruction in the first: some chat templates have one system message, in front."""
    first, *rest = messages
    if first["role"] in ("system", "developer") and isinstance(first["content"], str):
        return [{**first, "content": f"{first['content']}\n\n{instruction}"}, *rest]
    return [{"role": "system", "content": instruction}, *messages]


def _text_of(body: Values) -> str:
    try:
        choice = body["choices"][0]
        message = choice["message"]
        refusal, text, reason = message.get("refusal"), message.get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise GradingError(JUDGE_PARSE, "The judge answered no message.") from error
    if refusal:
        raise GradingError(JUDGE_REFUSAL, f"The judge refused: {str(refusal)[:SHOWN]}")
    if reason == "length":
        raise GradingError(TRUNCATED, "The judge's answer was cut off at its limit of tokens.")
    return text if isinstance(text, str) else ""
