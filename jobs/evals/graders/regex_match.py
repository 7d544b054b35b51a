"""Search a text for a regular expression."""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from jobs.evals import patterns
from jobs.evals.graders.base import OTHER, Grader, GradingCase, GradingError, Template, Values


def _check_pattern(pattern: str, info: ValidationInfo) -> str:
    is_stored = (info.context or {}).get("is_stored")  # accepted once, and perhaps refused now: its items are errored
    if not is_stored:
        patterns.check_pattern(pattern)
    return pattern


class RegexMatch(Grader):
    """Search `input` for a regular expression."""

    limits: ClassVar[str] = (
        f"{patterns.MAX_LENGTH:,} characters of a pattern, {patterns.MAX_REPEATS:,} repeats of a part, those of all "
        f"groups around it multiplied, and {patterns.MAX_PARTS:,} parts with repeats written out; "
        f"{patterns.MAX_CHARACTERS:,} characters of a text; {patterns.SECONDS:g} second"
    )

    type: Literal["regex"]
    input: Template
    pattern: Annotated[str, Field(min_length=1, max_length=patterns.MAX_LENGTH), AfterValidator(_check_pattern)]
    ignore_case: bool | None = None

    @cached_property
    def _regex(self) -> Any:
        return patterns.compile_pattern(self.pattern, ignore_case=bool(self.ignore_case))

    def score(self, case: GradingCase) -> tuple[float, Values]:
        try:
            return float(patterns.is_found(self._regex, case.render(self.input), case.budget.seconds_left())), {}
        except (patterns.SearchFailed, ValueError) as error:
            raise GradingError(OTHER, str(error)) from error
