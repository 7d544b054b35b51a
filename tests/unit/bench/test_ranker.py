"""Pairs that a re-ranking model is trained on: no answer holds its question, and files alone decide their order."""

from pathlib import Path

from bench import ranker

GOOD = '''
def fly(bird):
    """Tells whether a bird of this kind can fly at all, or walks.

    {text}
    """
'''
TEXT = "Kiwis and emus can't; most of the others can, unless their wings were clipped or they moult just now. " * 3


def written(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def test_the_first_sentence_asks_for_what_follows_it(tmp_path: Path) -> None:
    written(tmp_path, "a.py", GOOD.format(text=TEXT))
    written(tmp_path, "again.py", GOOD.format(text=TEXT))
    written(tmp_path, "short.py", '"""Too short."""')
    written(tmp_path, "template.py", "{{ name }} is no Python")

    [(query, text)] = ranker.pairs(tmp_path, 10)

    assert query == "Tells whether a bird of this kind can fly at all, or walks."
    assert text.startswith("Kiwis and emus")
    assert query not in text


def test_the_same_files_give_the_same_pairs_and_no_more_than_are_wanted(tmp_path: Path) -> None:
    for n in range(9):
        written(tmp_path, f"m{n}.py", GOOD.format(text=f"Number {n}. {TEXT}").replace("a bird", f"bird number {n}"))

    assert ranker.pairs(tmp_path, 5) == ranker.pairs(tmp_path, 9)[:5]


def test_wrong_texts_are_near_ones_and_never_the_right_one() -> None:
    import numpy as np

    chosen = [(f"query {n}", f"text {n}") for n in range(40)]
    angles = {name: n / 40 for n, pair in enumerate(chosen) for name in pair}

    groups = ranker.grouped(chosen, lambda texts: np.array([[np.cos(angles[t]), np.sin(angles[t])] for t in texts]))

    assert groups == ranker.grouped(
        chosen, lambda texts: np.array([[np.cos(angles[t]), np.sin(angles[t])] for t in texts])
    )
    assert sorted(query for query, _ in groups) == sorted(query for query, _ in chosen)
    for query, texts in groups:
        right = int(query.split()[1])
        assert texts[0] == f"text {right}"
        assert len(set(texts)) == 4
