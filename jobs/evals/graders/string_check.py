"""Compare two texts: equal, not equal, or one in the other."""

from typing import ClassVar, Literal

from jobs.evals.graders.base import Grader, GradingCase, Template, Values


class StringCheck(Grader):
    """Compare `input` with `reference`: equal, not equal, or containing it with (`like`) or without (`ilike`) case."""

    is_openai: ClassVar[bool] = True
    kind_field: ClassVar[str] = "operation"

    type: Literal["string_check"]
    input: Template
    operation: Literal["eq", "ne", "like", "ilike"]
    reference: Template

    def score(self, case: GradingCase) -> tuple[float, Values]:
        return float(self._matches(case.render(self.input), case.render(self.reference))), {}

    def _matches(self, text: str, reference: str) -> bool:
        match self.operation:
            case "eq":
                return text == reference
            case "ne":
                return text != reference
            case "like":
                return reference in text
            case "ilike":
                return reference.casefold() in text.casefold()
