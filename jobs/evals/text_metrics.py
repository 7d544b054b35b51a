"""Measures of how alike two texts are, between 0 and 1: pure functions of the text and its reference.

    bleu               sacrebleu's `sentence_bleu`: 13a tokens, n-grams up to 4, exponential smoothing, effective order
    chrf               sacrebleu's `sentence_chrf`: characters in n-grams up to 6, without words; not OpenAI's
    gleu               NLTK's `sentence_gleu` on 13a tokens
    meteor             NLTK's `single_meteor_score` on 13a tokens, with Porter's stems and the synonyms of WordNet
    rouge_1 … rouge_5  rouge-score's F-measure of n-grams, without stems: Latin letters and digits alone count
    rouge_l            the same of the longest common subsequence
    fuzzy_match        rapidfuzz's `WRatio` with `default_process`
    cosine             the cosine of two embeddings, between -1 and 1

A fixture that the named libraries wrote shows that the values are theirs. Texts are bounded before they are compared.
"""

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any, Final

#: Characters of a text that is compared.
MAX_CHARACTERS: Final = 100_000
#: Steps that a comparison may take in a library's code, which cannot be interrupted: a second at most.
_MAX_STEPS: Final = 1 << 30
_WORD_BITS: Final = 64
_CHARACTERS: Final = 6  # in n-grams of chrF
_RECALL_WEIGHT: Final = 2  # beta of chrF
_ORDER: Final = 4  # of n-grams, in BLEU and GLEU
_LEXNAMES: Final = 45  # files of lexicographers
_wordnet_lock: Final = threading.Lock()
#: Where Debian's package `wordnet-base` has WordNet.
DEBIAN_WORDNET: Final = Path("/usr/share/wordnet")


class MetricUnavailable(Exception):
    """Two texts cannot be compared: a text is too long, or the deployment lacks a part."""


def similarity(metric: str, text: str, reference: str, wordnet: Any = None) -> float:
    """Return how alike the texts are by any metric but `cosine`. `wordnet` is what `open_wordnet` returned.

    Raises: MetricUnavailable.
    """
    if max(len(text), len(reference)) > MAX_CHARACTERS:
        raise MetricUnavailable(f"A text to compare has at most {MAX_CHARACTERS} characters.")
    if metric == "meteor":
        return meteor(text, reference, wordnet)
    return _METRICS[metric](text, reference)


def bleu(text: str, reference: str) -> float:
    """Return the geometric mean of the precisions of n-grams, lowered for a text shorter than its reference."""
    tokens, expected = tokenize_13a(text), tokenize_13a(reference)
    logs, smoothing = [], 1.0
    for n in range(1, min(_ORDER, len(tokens)) + 1):
        grams = _ngrams(tokens, n)
        matched = (grams & _ngrams(expected, n)).total()
        if not matched:
            if n == 1:
                return 0.0
            smoothing *= 2
        logs.append(math.log((matched or 1 / smoothing) / grams.total()))
    if not logs:
        return 0.0
    brevity = min(0.0, 1 - len(expected) / len(tokens))
    return math.exp(brevity + sum(logs) / len(logs))


def chrf(text: str, reference: str) -> float:
    """Return the F-measure of n-grams of characters, in which recall counts twice as much as precision."""
    characters, expected = "".join(text.split()), "".join(reference.split())
    precisions, recalls = [], []
    for n in range(1, min(_CHARACTERS, len(characters), len(expected)) + 1):
        grams, expected_grams = _character_grams(characters, n), _character_grams(expected, n)
        matched = (grams & expected_grams).total()
        precisions.append(matched / grams.total())
        recalls.append(matched / expected_grams.total())
    precision, recall = (sum(values) / max(1, len(values)) for values in (precisions, recalls))
    weight = _RECALL_WEIGHT**2
    return (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0


def gleu(text: str, reference: str) -> float:
    """Return the common n-grams divided by those of the text or of the reference, whichever has more."""
    grams, expected = _up_to(tokenize_13a(text)), _up_to(tokenize_13a(reference))
    longer = max(grams.total(), expected.total())
    return (grams & expected).total() / longer if longer else 0.0


def meteor(text: str, reference: str, wordnet: Any) -> float:
    """Return the F-measure of words that are equal, share a stem or are synonyms, lowered for scattered matches.

    Raises: MetricUnavailable, without WordNet.
    """
    if wordnet is None:
        raise MetricUnavailable("This deployment has no WordNet, which the metric 'meteor' needs.")
    tokens, expected = tokenize_13a(text), tokenize_13a(reference)
    from nltk.translate.meteor_score import single_meteor_score

    with _wordnet_lock:
        return float(single_meteor_score(expected, tokens, wordnet=wordnet)) if tokens and expected else 0.0


@cache
def open_wordnet(folder: Path) -> Any:
    """Return NLTK's reader of the WordNet in `folder`, for one thread at a time.

    Raises: OSError, where a file is missing.
    """
    from nltk import data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    data.path.append(str(folder))  # NLTK reads only below the folders of this list

    class Reader(WordNetCorpusReader):  # type: ignore[misc]  # NLTK has no types
        def open(self, file: str) -> Any:
            """Return a file, or, as Debian has no `lexnames`, numbers for the names in it: METEOR reads none."""
            if file == "lexnames":
                return StringIO("".join(f"{number:02} {number} 0\n" for number in range(_LEXNAMES)))
            return super().open(file)

        def map_wn(self, version: str = "") -> None:
            """Do without the translation to other versions of WordNet, which METEOR does not need."""

    return Reader(str(folder), False)  # False: no languages besides English, and no warning of that


def rouge_n(text: str, reference: str, n: int) -> float:
    """Return the F-measure of the common n-grams."""
    grams, expected = _ngrams(_latin_words(text), n), _ngrams(_latin_words(reference), n)
    return _f_measure((grams & expected).total(), grams.total(), expected.total())


def rouge_l(text: str, reference: str) -> float:
    """Return the F-measure of the longest common subsequence of words."""
    words, expected = _latin_words(text), _latin_words(reference)
    return _f_measure(_common_subsequence(words, expected), len(words), len(expected))


def fuzzy_match(text: str, reference: str) -> float:
    """Return rapidfuzz's weighted ratio, which compares characters, words and parts.

    Raises: MetricUnavailable, where texts of different lengths are too long to be searched in each other.
    """
    from rapidfuzz import fuzz, utils

    shorter, longer = sorted((len(text), len(reference)))
    if 2 * longer > 3 * shorter and longer * shorter * shorter // _WORD_BITS > _MAX_STEPS:
        raise MetricUnavailable("The texts are too long for the metric 'fuzzy_match'.")
    return float(fuzz.WRatio(text, reference, processor=utils.default_process)) / 100


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors. Raises: MetricUnavailable, for a vector of zeros."""
    norms = math.hypot(*first) * math.hypot(*second)
    if not norms or not math.isfinite(norms):
        raise MetricUnavailable("An embedding has no direction.")
    product = sum(left * right for left, right in zip(first, second, strict=True))
    return min(1.0, max(-1.0, product / norms))


_METRICS: Final[Mapping[str, Callable[[str, str], float]]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "chrf": chrf,
    "gleu": gleu,
    **{f"rouge_{n}": partial(rouge_n, n=n) for n in range(1, 6)},
    "rouge_l": rouge_l,
}


# Tokens and n-grams.

_ENTITIES: Final = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SEPARATIONS: Final = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_NOT_LATIN: Final = re.compile(r"[^a-z0-9]+")


def tokenize_13a(text: str) -> list[str]:
    """Return the words and signs of a text, split as the script mteval-v13a does."""
    line = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in _ENTITIES:
        line = line.replace(entity, sign)
    line = f" {line} "
    for pattern, separated in _SEPARATIONS:
        line = pattern.sub(separated, line)
    return line.split()


def _latin_words(text: str) -> list[str]:
    return _NOT_LATIN.sub(" ", text.lower()).split()


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _character_grams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))


def _up_to(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for n in range(1, _ORDER + 1):
        counts += _ngrams(tokens, n)
    return counts


def _f_measure(common: int, text: int, reference: int) -> float:
    """Return the harmonic mean of `common / text` and `common / reference`."""
    return 2 * common / (text + reference) if common else 0.0


def _common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence, by the bits of one integer for all of `first`."""
    positions: dict[Hashable, int] = {}
    for position, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << position
    every = (1 << len(first)) - 1
    unmatched = every
    for word in second:
        matches = unmatched & positions.get(word, 0)
        unmatched = (unmatched + matches | unmatched - matches) & every
    return len(first) - unmatched.bit_count()
