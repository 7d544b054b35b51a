"""Reports of a run beside its baseline, for CI: JUnit's XML, and a summary in Markdown.

    criteria                    a test case each: passed, failed (worse) or skipped (inconclusive)
    items with the largest regressions     a failed test case each, where the run is worse

Texts of clients and models stay texts: XML gets no character that XML forbids, and Markdown neither links nor HTML.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, Final
from xml.etree import ElementTree as ET

from cli.client.comparison_report import item_texts
from cli.terminal import visible

if TYPE_CHECKING:
    from jobs.evals.regression import MarginTest, RegressionDecision

Item = Mapping[str, Any]

#: Items with the largest regressions in each report, and in the summary, which a CI server cuts off.
MAX_WORST: Final = 50
_SUMMARIZED: Final = 10
_SHOWN: Final = 2000  # characters of a text
_MARKUP: Final = re.compile(r"[^\w\s,:;%()+-]|_")
_NO_XML: Final = re.compile("[\ufffe\uffff]")
_TITLES: Final = {
    "worse": "Worse than the baseline",
    "inconclusive": "Inconclusive",
    "not worse": "Not worse than the baseline",
}


@dataclass(frozen=True, slots=True)
class RegressionReport:
    """The decision about a run, the run and its baseline as the API shows them, and the largest regressions of items.

    Each of `worst` is the output item of the baseline and that of the run. `margin` is in points.
    """

    decision: "RegressionDecision"
    baseline: Mapping[str, Any]
    run: Mapping[str, Any]
    worst: Sequence[tuple[Item, Item]]
    margin: float
    confidence: float

    HEAD: ClassVar = ("criterion", "items", "baseline", "run", "points", "interval", "p", "outcome")

    def rows(self) -> Iterator[tuple[object, ...]]:
        """Yield the cells of a table with a row for each criterion."""
        for test in self.decision.tests:
            means = (f"{test.row.first:.3f}", f"{test.row.second:.3f}")
            yield test.row.criterion, test.row.items_text, *means, *_points(test), test.row.p_text, test.text
        for name in self.decision.unscored:
            yield name, 0, *"-----", "inconclusive"

    def summary(self) -> dict[str, Any]:
        """Return the decision as an object of JSON."""
        tests = [
            asdict(test.row) | {"outcome": test.outcome, "points": test.points[0], "items_needed": test.further_items}
            for test in self.decision.tests
        ]
        fields = {"baseline": self.baseline["id"], "run": self.run["id"], "margin": self.margin}
        return fields | {"outcome": self.decision.outcome, "criteria": tests, "unscored": [*self.decision.unscored]}

    def junit(self) -> bytes:
        """Return the report as XML."""
        suite = ET.Element("testsuite", name=_xml(f"nightmill evals: {self.run['name']}"))
        class_name = f"{self.run['eval_id']}.{self.run['id']}"
        for test in self.decision.tests:
            tag = {"worse": "failure", "inconclusive": "skipped"}.get(test.outcome)
            difference, interval = _points(test)
            message = f"{test.text}: {difference} points ({interval}), p {test.row.p_text}, {test.row.items} items"
            _add_case(suite, class_name, test.row.criterion, tag, message)
        for name in self.decision.unscored:
            _add_case(suite, class_name, name, "skipped", "no item has a score in both runs")
        for first, second in self.worst if self.decision.outcome == "worse" else ():
            _add_case(
                suite, f"{class_name}.items", second["id"], "failure", _changes(first, second), _sides(first, second)
            )
        for attribute, tag in (
            ("tests", "testcase"),
            ("failures", "testcase/failure"),
            ("skipped", "testcase/skipped"),
        ):
            suite.set(attribute, str(len(suite.findall(tag))))
        return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True))

    def markdown(self) -> str:
        """Return the summary in Markdown."""
        run, baseline = self.run, self.baseline
        lines = [
            f"## {_TITLES[self.decision.outcome]}",
            "",
            f"Run {_link(run)} against the baseline {_link(baseline)}.",
            "",
            (
                f"Accepted loss: {self.margin:g} points. Confidence: {self.confidence:.4g}. Errored items: "
                f"{run['result_counts']['errored']} (baseline: {baseline['result_counts']['errored']})."
            ),
            "",
            f"| {' | '.join(self.HEAD)} |",
            f"|{'---|' * len(self.HEAD)}",
            *(f"| {_plain(name)} | {' | '.join(map(str, cells))} |" for name, *cells in self.rows()),
        ]
        for first, second in self.worst[:_SUMMARIZED]:
            shown = escape(_sides(first, second), quote=False)
            title = f"{_plain(second['id'])}: {_plain(_changes(first, second))}"
            lines += ["", f"<details><summary>{title}</summary>", "", f"<pre>{shown}</pre>", "", "</details>"]
        return "\n".join([*lines, "", ""])


def _points(test: "MarginTest") -> tuple[str, str]:
    difference, low, high = test.points
    return f"{difference:+.1f}", f"{low:+.1f} … {high:+.1f}"


def _link(run: Mapping[str, Any]) -> str:
    return f"[{_plain(run['id'])}]({run['report_url']}) of {_plain(run['model'] or 'no model')}"


def _changes(first: Item, second: Item) -> str:
    """Return the scores of an item that changed."""
    before = {result["name"]: result["score"] for result in first["results"]}
    scores = ((result["name"], before.get(result["name"]), result["score"]) for result in second["results"])
    return ", ".join(f"{name}: {old} to {new}" for name, old, new in scores if old != new)


def _sides(first: Item, second: Item) -> str:
    """Return an item and its outputs in both runs, as lines of text."""
    shown, before = item_texts(first)
    titled = (("item", shown), ("baseline", before), ("run", item_texts(second)[1]))
    return "\n\n".join(f"{title}:\n{_lines(text)}" for title, text in titled)


def _lines(text: str) -> str:
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return "\n".join(map(visible, cut.split("\n")))


def _plain(text: object) -> str:
    """Return a text as one line that Markdown shows as it is."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", visible(str(text)))


def _xml(text: str) -> str:
    return _NO_XML.sub("\ufffd", "\n".join(map(visible, text.split("\n"))))


def _add_case(suite: ET.Element, class_name: str, name: str, tag: str | None, message: str, text: str = "") -> None:
    case = ET.SubElement(suite, "testcase", classname=_xml(class_name), name=_xml(name))
    if tag is None:
        ET.SubElement(case, "system-out").text = _xml(message)
    else:
        ET.SubElement(case, tag, message=_xml(message)).text = _xml(text)
