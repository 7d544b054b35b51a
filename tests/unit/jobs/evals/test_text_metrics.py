"""Text metrics against the values of the reference libraries, which `write_text_metrics.py` wrote into a fixture."""

import json
import time
from contextlib import suppress
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


def cjk(count: int) -> str:
    """Return characters whose positions rapidfuzz looks up in a hash table."""
    return "".join(chr(0x4E00 + 7919 * n * n % 20_000) for n in range(count))


#: Texts that are slow to compare, by kind, from a number of characters.
SLOW = {
    "one character": lambda count: "a" * count,
    "Chinese": cjk,
    "Chinese words": lambda count: " ".join(cjk(count // 2)),
    "emoji": lambda count: "".join(chr(0x1F300 + n * n % 1000) for n in range(count)),
    "words": lambda count: " ".join(f"{n % 1000:x}" for n in range(count // 4)),
    "signs": lambda count: ".," * (count // 2),
    "long words": lambda count: " ".join(["b" * 999] * (count // 1000)),
    "words to drop": lambda count: "." * (count // 3) + cjk(count - count // 3),
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("metric", METRICS)
def test_the_longest_texts_are_compared_in_seconds_or_refused(metric: str) -> None:
    most = text_metrics.METRICS[metric].characters
    assert most <= (10_000 if metric in ("fuzzy_match", "meteor") else MAX_CHARACTERS)
    with pytest.raises(MetricUnavailable, match="at most"):
        similarity(metric, "x" * (most + 1), "x", NoSynonyms())
    began = time.process_time()
    for make in SLOW.values():
        for part in (1, 1.5, 8):
            with suppress(MetricUnavailable):
                assert 0 <= similarity(metric, make(most), make(int(most / part))[::-1], NoSynonyms()) <= 1
    assert time.process_time() - began < 60


@pytest.mark.parametrize(("shorter", "longer"), [(3_300, 6_000), (6_000, 10_000)])
def test_long_texts_are_not_searched_in_each_other(shorter: int, longer: int) -> None:
    with pytest.raises(MetricUnavailable, match="too long for the metric 'fuzzy_match'"):
        similarity("fuzzy_match", cjk(longer), cjk(shorter))
    with pytest.raises(MetricUnavailable, match="too long for the metric 'fuzzy_match'"):  # signs are not compared
        similarity("fuzzy_match", cjk(longer), cjk(shorter) + "." * (longer - shorter))
    assert similarity("fuzzy_match", cjk(longer), cjk(longer)) == 1.0


def test_time_estimate_bounds_worst_case_texts() -> None:
    """Compare with thirty times as much: the machine may be slower than the one that was measured."""
    for name, metric in text_metrics.METRICS.items():
        for make in SLOW.values():
            text, reference = make(metric.characters // 4), make(metric.characters // 10)[::-1]
            similarity(name, "a b", "a c", NoSynonyms())  # load the library
            began = time.process_time()
            with suppress(MetricUnavailable):
                similarity(name, text, reference, NoSynonyms())
            assert time.process_time() - began < 30 * metric.seconds(text, reference) + 1, (name, text[:9])
