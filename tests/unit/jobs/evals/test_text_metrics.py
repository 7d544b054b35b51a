"""Text metrics against the values of the reference libraries, which `write_text_metrics.py` wrote into a fixture."""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.evals import text_metrics
from jobs.evals.text_metrics import MAX_CHARACTERS, MetricUnavailable, similarity

FIXTURE = json.loads(Path(__file__).with_name("text_metrics.json").read_text())
METRICS = ("fuzzy_match", "bleu", "chrf", "gleu", "meteor", *(f"rouge_{n}" for n in range(1, 6)), "rouge_l")


@dataclass(frozen=True)
class Synset:
    """A WordNet entry, or one lemma of it, by the two methods that NLTK's METEOR calls."""

    names: tuple[str, ...]

    def lemmas(self) -> list["Synset"]:
        return [Synset((name,)) for name in self.names]

    def name(self) -> str:
        return self.names[0]


class Synonyms:
    """The part of WordNet that the fixture's words need."""

    def synsets(self, word: str) -> list[Synset]:
        return [Synset(tuple(FIXTURE["synonyms"].get(word.lower(), ())))]


def test_the_fixture_has_200_pairs_of_named_libraries() -> None:
    assert len(FIXTURE["pairs"]) >= 200
    assert FIXTURE["versions"].keys() == {"sacrebleu", "nltk", "rouge-score", "rapidfuzz"}
    for metric in METRICS:
        assert len({pair["scores"][metric] for pair in FIXTURE["pairs"]}) > 50, metric


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_has_the_values_of_its_reference_library(metric: str) -> None:
    for pair in FIXTURE["pairs"]:
        score = similarity(metric, pair["text"], pair["reference"], Synonyms())
        assert score == pytest.approx(pair["scores"][metric], abs=1e-6), pair


def test_meteor_counts_synonyms_only_with_a_wordnet() -> None:
    pair = ("the car stopped", "the auto stopped")
    assert similarity("meteor", *pair, Synonyms()) > similarity("meteor", *pair, NoSynonyms())
    with pytest.raises(MetricUnavailable, match="WordNet"):
        similarity("meteor", *pair)


class NoSynonyms:
    def synsets(self, word: str) -> list[Synset]:
        return []


def test_wordnet_is_read_as_debian_packs_it(tmp_path: Path) -> None:
    """Without `lexnames`: two entries of WordNet 3.0, with their offsets in this file."""
    line = "{offset:08} 00 n 02 {first} 0 {second} 0 000 | on wheels\n"
    licence = "  1 This software and database\n"
    for name in ("adj", "verb", "adv"):
        (tmp_path / f"data.{name}").write_text(licence)
        (tmp_path / f"index.{name}").write_text(licence)
        (tmp_path / f"{name}.exc").write_text("")
    (tmp_path / "noun.exc").write_text("")
    (tmp_path / "data.noun").write_text(licence + line.format(offset=len(licence), first="car", second="auto"))
    entries = [f"{word} n 1 0 1 0 {len(licence):08}\n" for word in ("car", "auto")]
    (tmp_path / "index.noun").write_text(licence + "".join(entries))

    wordnet = text_metrics.open_wordnet(tmp_path)

    assert [lemma.name() for synset in wordnet.synsets("auto") for lemma in synset.lemmas()] == ["car", "auto"]
    assert similarity("meteor", "a car stopped", "a auto stopped", wordnet) > 0.9


@pytest.mark.skipif(not text_metrics.DEBIAN_WORDNET.exists(), reason="wordnet-base is not installed")
def test_meteor_with_debians_wordnet_has_the_values_of_the_fixture() -> None:
    wordnet: Any = text_metrics.open_wordnet(text_metrics.DEBIAN_WORDNET)
    for pair in FIXTURE["pairs"]:
        score = similarity("meteor", pair["text"], pair["reference"], wordnet)
        assert score == pytest.approx(pair["scores"]["meteor"], abs=1e-6), pair


@pytest.mark.parametrize("metric", METRICS)
def test_the_longest_texts_are_compared_in_seconds_or_refused(metric: str) -> None:
    began = time.monotonic()
    text, reference = "ab " * (MAX_CHARACTERS // 3), "b a" * (MAX_CHARACTERS // 3)
    for longer in (reference, reference[: MAX_CHARACTERS // 2]):
        refused = metric == "fuzzy_match" and longer is not reference
        with pytest.raises(MetricUnavailable, match="too long") if refused else nullcontext():
            assert 0 <= similarity(metric, text, longer, NoSynonyms()) <= 1
    assert time.monotonic() - began < 60
    with pytest.raises(MetricUnavailable, match="at most"):
        similarity(metric, text + "x" * 10, reference, NoSynonyms())
