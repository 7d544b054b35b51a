"""Collections with judgements: no answer may lie in the document word for word, and no query may be of two."""

import gzip
import json
from pathlib import Path

import pytest

from bench import judged

ABSTRACT = "This memo describes how carrier pigeons take datagrams from here to there.  It obsoletes RFC 1.  [STD]"
TEXT = """
RFC 2                       Pigeons                    April 1990

Abstract

   This memo describes how carrier pigeons take
   datagrams from here to there.  It obsoletes RFC 1.

   1.  Birds ......................... 2

1.  Birds

   A pigeon is a bird that carries one scroll.

Waitzman                                               [Page 1]
"""


def _rfc(folder: Path, number: int, abstract: str) -> None:
    facts = {"doc_id": f"RFC{number}", "abstract": abstract}
    (folder / f"rfc{number}.json").write_text(json.dumps(facts))
    (folder / f"rfc{number}.txt.gz").write_bytes(gzip.compress(TEXT.encode()))


def test_document_does_not_contain_its_abstract() -> None:
    left = judged.without(TEXT, ABSTRACT)

    assert "datagrams" not in left
    assert "A pigeon is a bird that carries one scroll." in left
    assert "[Page 1]" not in left
    assert "....." not in left


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (ABSTRACT, "This memo describes how carrier pigeons take datagrams from here to there."),
        ("About BOOTP.  And more.", "About BOOTP."),
        ("By J. Postel and\n others.  Then", "By J. Postel and others."),
        ("no end [STANDARDS-TRACK]", "no end"),
    ],
)
def test_first_sentence(text: str, first: str) -> None:
    assert judged.first_sentence(text) == first


def test_query_that_is_about_two_documents_is_left_out(tmp_path: Path) -> None:
    same = "This document defines a part of the management information base."
    _rfc(tmp_path, 1, same)
    _rfc(tmp_path, 2, ABSTRACT)
    _rfc(tmp_path, 3, same)

    found = judged.rfcs(tmp_path, tmp_path)

    assert [paper.name for paper in found.papers] == ["rfc1.txt", "rfc2.txt", "rfc3.txt"]
    assert list(found.relevant.values()) == ["rfc2.txt"]
    assert list(found.queries.values()) == [
        "This memo describes how carrier pigeons take datagrams from here to there."
    ]


def test_modules_do_not_contain_their_queries() -> None:
    found = judged.modules()

    texts = {paper.name: paper.data.decode() for paper in found.papers}
    assert len(found.queries) > 100
    assert [query for number, query in found.queries.items() if query in texts[found.relevant[number]]] == []


def test_every_question_about_a_small_store_has_its_document_in_it() -> None:
    stores = judged.small_stores()

    assert all(len(store.papers) == len(store.queries) == 4 for store in stores)
    for store in [*stores, judged.topics()]:
        names = {paper.name for paper in store.papers}
        assert names.issuperset(store.relevant.values())
        assert store.queries.keys() == store.relevant.keys()
