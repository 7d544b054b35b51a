"""The report of a comparison: one HTML file that loads nothing from elsewhere.

a table for each slice: means, difference, interval      the gaps between slices
bars of means      a histogram of scores for each criterion
the items with the largest regressions, with both outputs side by side
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jobs.evals.comparison import Gap, LeftOut, PairedComparison, Pairing

Item = Mapping[str, Any]

_BINS: Final = 10
_SHOWN: Final = 4000  # characters of a text
_STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #8886 }
th:first-child, td:first-child { text-align: left }
.better { color: light-dark(#18794e, #3dd68c) } .worse { color: light-dark(#cd2b31, #ff9592) }
svg { display: block; margin: .5rem 0 } .key { display: inline; margin: 0 }
.first { fill: #8d8d8d } .second { fill: #3e63dd }
svg text { font: 12px system-ui, sans-serif; fill: currentColor }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin: 1rem 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; padding: .5rem; border: 1px solid #8886 }
"""
_METHOD: Final = (
    "A verdict needs 20 items, an interval that leaves out 0, and a p-value below 0.05, which is corrected for the "
    "number of comparisons (Holm). How many more items would decide is an estimate."
)
#: The page has no script and loads nothing; a browser refuses both, should a text of a model become markup.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_HEAD: Final = (
    "criterion",
    "items",
    "first",
    "second",
    "difference",
    "95 % interval",
    "better",
    "worse",
    "p",
    "verdict",
)


def report_page(
    first: str,
    second: str,
    pairing: "Pairing",
    compared: Sequence[tuple[str, "PairedComparison"]],
    gaps: Sequence["Gap"],
    worst: Iterable[tuple[Item, Item]],
) -> str:
    """Return the report of two runs, which are named by their ids.

    `compared` has the slice of each comparison, `worst` the output items with the largest regressions in both runs.
    """
    overall = [row for group, row in compared if not group]
    key = '<svg class="key" width="14" height="14"><rect class="{0}" width="14" height="14"/></svg> <b>{0}</b>'
    parts = [
        f"<p>{key.format('first')} {escape(first)} · {key.format('second')} {escape(second)}</p>",
        f"<p>{pairing.items} items in both, {len(pairing.pairs)} samples</p>",
        f"<p>{_METHOD}</p>",
        *_unpaired_items("first", pairing.only_first),
        *_unpaired_items("second", pairing.only_second),
        _table(overall),
        _bars(overall),
        *_histograms(pairing),
        *_gaps(gaps),
        *_slices(compared),
        *_regressions(worst),
    ]
    body = "\n".join(parts)
    title = f"{escape(first)} and {escape(second)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>Comparison of two runs</h1>\n{body}\n</body></html>\n"
    )


def _table(rows: Sequence["PairedComparison"]) -> str:
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, rows))}</tbody></table>"


def _row(row: "PairedComparison") -> str:
    mark = f' class="{row.verdict}"' if row.is_significant else ""
    numbers = (
        f"<td>{row.items_text}</td><td>{row.first:.3f}</td><td>{row.second:.3f}</td><td{mark}>{row.difference:+.3f}</td>"
        f"<td{mark}>{row.low:+.3f} … {row.high:+.3f}</td><td>{row.better}</td><td>{row.worse}</td>"
        f"<td>{escape(row.p_text)}</td><td{mark}>{row.verdict_text}</td>"
    )
    return f"<tr><td>{escape(row.criterion)}</td>{numbers}</tr>"


def _bars(rows: Sequence["PairedComparison"]) -> str:
    """Return a bar for the mean of each run by each criterion."""
    top = max([1e-9, *(max(abs(row.first), abs(row.second)) for row in rows)])
    lines = []
    for position, row in enumerate(rows):
        y = position * 44
        lines.append(f'<text x="0" y="{y + 24}">{escape(row.criterion[:28])}</text>')
        for offset, name, mean in ((0, "first", row.first), (18, "second", row.second)):
            width = max(mean, 0.0) / top * 400
            lines.append(f'<rect class="{name}" x="220" y="{y + offset}" width="{width:.1f}" height="16"/>')
            lines.append(f'<text x="{226 + width:.1f}" y="{y + offset + 12}">{mean:.3f}</text>')
    return f'<h2>Means</h2><svg width="720" height="{len(rows) * 44}">{"".join(lines)}</svg>'


def _histograms(pairing: "Pairing") -> Iterator[str]:
    """Yield the distribution of the scores by each criterion that both runs have."""
    for position, criterion in enumerate(pairing.criteria[1:], 1):
        both = [
            [pair.first.score(position) for pair in pairing.pairs],
            [pair.second.score(position) for pair in pairing.pairs],
        ]
        columns = [[score for score in column if score is not None] for column in both]
        if all(columns):
            low, high = min(map(min, columns)), max(map(max, columns))
            yield f"<h2>Scores: {escape(criterion)}</h2>{_histogram(columns, low, high)}"


def _histogram(columns: Sequence[Sequence[float]], low: float, high: float) -> str:
    size = (high - low) / _BINS or 1.0
    counts = [[0] * _BINS for _ in columns]
    for number, scores in enumerate(columns):
        for score in scores:
            counts[number][min(int((score - low) / size), _BINS - 1)] += 1
    top = max(1, *(max(row) for row in counts))
    bars = []
    for number, name in enumerate(("first", "second")):
        for position, count in enumerate(counts[number]):
            height = count / top * 120
            x = position * 64 + number * 28
            bars.append(f'<rect class="{name}" x="{x}" y="{120 - height:.1f}" width="26" height="{height:.1f}"/>')
    ends = f'<text x="0" y="138">{low:.3g}</text><text x="600" y="138">{high:.3g}</text>'
    return f'<svg width="660" height="144">{"".join(bars)}{ends}</svg>'


def _unpaired_items(name: str, items: "LeftOut") -> Iterator[str]:
    """Yield the items of one run only."""
    if items.count:
        shown = ", ".join(map(escape, items.ids)) + (" …" if items.count > len(items.ids) else "")
        yield f"<details><summary>{items.count} items in {name} only (left out)</summary><p>{shown}</p></details>"


def _gaps(gaps: Sequence["Gap"]) -> Iterator[str]:
    """Yield how far apart the slices are, by criterion and run."""
    if not gaps:
        return
    head = "".join(f"<th>{name}</th>" for name in ("criterion", "run", "highest", "lowest", "gap", "95 % interval"))
    rows = "".join(
        f"<tr><td>{escape(gap.criterion)}</td><td>{gap.run}</td><td>{escape(gap.highest)}</td>"
        f"<td>{escape(gap.lowest)}</td><td>{gap.gap:.3f}</td><td>{gap.low:+.3f} … {gap.high:+.3f}</td></tr>"
        for gap in gaps
    )
    yield f"<h2>Gaps between slices</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _slices(compared: Sequence[tuple[str, "PairedComparison"]]) -> Iterator[str]:
    for group in dict.fromkeys(group for group, _ in compared if group):
        yield f"<h2>Slice: {escape(group)}</h2>{_table([row for name, row in compared if name == group])}"


def _regressions(worst: Iterable[tuple[Item, Item]]) -> Iterator[str]:
    """Yield the items with the largest regressions, with the outputs of both runs side by side."""
    blocks = []
    for pair in worst:
        shown, _ = item_texts(pair[0])
        columns = "".join(f"<pre>{_text(item_texts(item)[1])}</pre>" for item in pair)
        blocks.append(f'<pre>{_text(shown)}</pre><div class="pair">{columns}</div>')
    yield f"<h2>Worst regressions</h2><p>{len(blocks)} shown.</p>"
    yield from blocks


def item_texts(item: Item) -> tuple[str, str]:
    """Return the texts of an output item: the item, and its output with its scores."""
    shown = json.dumps(item["datasource_item"], ensure_ascii=False, indent=1)
    texts = [str(message.get("content") or "") for message in item["sample"].get("output") or ()]
    scores = [f"{result['name']}: {result['score']}" for result in item["results"]]
    return shown, "\n".join([*texts, "", *scores])


def _text(text: str) -> str:
    return escape(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
