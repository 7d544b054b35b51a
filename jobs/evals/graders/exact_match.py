"""Compare two texts without the differences that are to be ignored."""

import unicodedata
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from jobs.evals.graders.base import OTHER, SHOWN, Grader, GradingCase, GradingError, Label, Template, Values

#: Labels of the classifications of an eval, all together: a run shows how often each was taken for each other one.
MAX_CLASSES: Final = 100


class ExactMatch(Grader):
    """Compare `input` with `reference` after the differences that are to be ignored have been removed from both.

    With `labels` the run has the metrics of a classification: the reference is one of them, and `input` a prediction.
    """

    kind_field: ClassVar[str] = "type"

    type: Literal["exact_match"]
    input: Template
    reference: Template
    ignore_case: bool | None = None
    ignore_punctuation: bool | None = None
    ignore_whitespace: bool | None = None
    labels: Annotated[list[Label], Field(min_length=1, max_length=MAX_CLASSES)] | None = None

    @property
    def classes(self) -> list[str]:
        return list(self.labels or ())

    def score(self, case: GradingCase) -> tuple[float, Values]:
        """Return whether two texts are equal, with both labels where there are any."""
        text, reference = (self._normalize(case.render(template)) for template in (self.input, self.reference))
        labels = self._labels_by_text()
        if labels and reference not in labels:
            raise GradingError(OTHER, f"The reference is none of the labels: {reference[:SHOWN]!r}.")
        details = {"expected": labels[reference], "predicted": labels.get(text)} if labels else {}
        return float(text == reference), details

    def _normalize(self, text: str) -> str:
        """Return a text without the differences that are ignored."""
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_punctuation:
            text = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
        return " ".join(text.split()) if self.ignore_whitespace else text

    def _labels_by_text(self) -> dict[str, str]:
        """Return the labels by what they are without the differences that are ignored."""
        return {self._normalize(label): label for label in self.labels or ()}

    @model_validator(mode="after")
    def _check_labels(self) -> "ExactMatch":
        if len(self._labels_by_text()) < len(self.labels or ()):
            raise ValueError("Each of the 'labels' is given once, whatever is ignored.")
        return self
