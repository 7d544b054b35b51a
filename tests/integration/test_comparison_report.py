"""The report of a comparison in a real browser: it loads nothing from elsewhere, and hostile text stays text."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from cli.client.comparison_report import report_page
from jobs.evals.comparison import compare, compare_slices, gaps, pair_items, regressions

HOSTILE = (
    "</pre><script>window.ran = 1</script><img src=http://127.0.0.1:9/x onerror='window.ran = 1'>"
    "<svg onload='window.ran = 1'><link rel=stylesheet href=//127.0.0.1:9/a.css><style>body{display:none}</style>"
)


def item(number: int, score: float, *, hostile: bool, text: str) -> dict[str, Any]:
    language = ("de", "en", f"fr {HOSTILE}" if hostile else "fr")[number % 3]
    results = [
        {"name": "same", "score": float(score > 0.5), "passed": score > 0.5},
        {"name": f"near {HOSTILE}" if hostile else "near", "score": score, "passed": score > 0.3},
    ]
    return {
        "id": f"outputitem_{number}",
        "datasource_item": {"question": f"Question {number} {HOSTILE if hostile else ''}", "language": language},
        "status": "pass" if score > 0.5 else "fail",
        "results": results,
        "sample": {"output": [{"role": "assistant", "content": f"{text} {HOSTILE if hostile else ''}"}]},
    }


def page_of(*, hostile: bool) -> str:
    first = [item(n, (n * 7 % 20) / 20, hostile=hostile, text="The first answer.") for n in range(60)]
    second = [item(n, (n * 11 % 20) / 20, hostile=hostile, text="Another answer.") for n in range(3, 62)]
    pairing = pair_items(first, second, "item.language")
    overall = [("", row) for row in compare(pairing.criteria, pairing.pairs)]
    compared = overall + compare_slices(pairing.criteria, pairing.slices)
    by_id = [{item["id"]: item for item in items} for items in (first, second)]
    worst = [(by_id[0][pair.first.id], by_id[1][pair.second.id]) for pair in regressions(pairing.pairs, 50)]
    name = f"evalrun_2 {HOSTILE}" if hostile else "evalrun_2"
    return report_page("evalrun_1", name, pairing, compared, gaps(pairing.criteria, pairing.slices), worst)


@pytest.mark.parametrize(
    ("items", "mark"), [(19, "<td>inconclusive, about 1 more</td>"), (20, '<td class="better">better</td>')]
)
def test_color_is_that_of_a_verdict_with_its_word(items: int, mark: str) -> None:
    first, second = ([item(n, score, hostile=False, text="") for n in range(items)] for score in (0.1, 0.9))
    pairing = pair_items(first, second)
    compared = [("", row) for row in compare(pairing.criteria, pairing.pairs)]

    page = report_page("evalrun_1", "evalrun_2", pairing, compared, [], [])

    assert page.count(mark) == len(compared)
    assert page.count('class="better"') == (3 * len(compared) if items == 20 else 0)


@pytest.mark.verify
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_is_shown_without_a_request(browser: Browser, tmp_path: Path, scheme: Any) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of(hostile=False))
    page = browser.new_page(color_scheme=scheme)
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))

    page.goto(file.as_uri())

    assert requests == [file.as_uri()]
    assert problems == []
    expect(page.get_by_role("heading", name="Worst regressions")).to_be_visible()
    expect(page.get_by_text("3 items in first only (left out)")).to_be_visible()
    assert page.locator("svg rect").count() > 20
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    background, text = (
        page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
    )
    assert (text == "rgb(255, 255, 255)") == (scheme == "dark"), (background, text)
    page.screenshot(path=tmp_path / f"report-{scheme}.png", full_page=True)
    page.close()


@pytest.mark.verify
def test_hostile_text_is_not_markup(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of(hostile=True))
    page = browser.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))

    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")

    assert requests == [file.as_uri()]
    assert page.evaluate("window.ran") is None
    assert page.locator("script, img, link").count() == 0
    assert page.locator("style").count() == 1
    expect(page.get_by_role("heading", name="Worst regressions")).to_be_visible()
    page.close()
