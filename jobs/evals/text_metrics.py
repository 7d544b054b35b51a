"""Measures of how alike two texts are, between 0 and 1: pure functions of the text and its reference.

    bleu               sacrebleu's `sentence_bleu`: 13a tokens, n-grams up to 4, exponential smoothing, effective order
    chrf               sacrebleu's `sentence_chrf`: characters in n-grams up to 6, without words; not OpenAI's
    gleu               NLTK's `sentence_gleu` on 13a tokens
    meteor             NLTK's `single_meteor_score` on 13a tokens, with Porter's stems and the synonyms of WordNet
    rouge_1 … rouge_5  rouge-score's F-measure of n-grams, without stems: Latin letters and digits alone count
    rouge_l            the same of the longest common subsequence
    fuzzy_match        rapidfuzz's `WRatio` with `default_process`
    cosine             the cosine of two embeddings, between -1 and 1

A fixture that the named libraries wrote shows that the values are theirs. No metric can be interrupted, so each has a
bound for its texts and an estimate of the seconds that it takes, both of which are looked at before it runs.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

#: Characters of a text that is compared; fewer where the time grows with the product of both lengths.
MAX_CHARACTERS: Final = 100_000
MAX_CHARACTERS_QUADRATIC: Final = 10_000
#: Seconds of a processor that all metrics of one item may take together, by their estimates.
MAX_SECONDS: Final = 3.0
_ORDER: Final = 4  # of n-grams, in BLEU and GLEU
_LEXNAMES: Final = 45  # files of lexicographers
_wordnet_lock: Final = threading.Lock()
#: Where Debian's package `wordnet-base` has WordNet.
DEBIAN_WORDNET: Final = Path("/usr/share/wordnet")


class MetricUnavailable(Exception):
    """Two texts cannot be compared: they are too long, or the deployment lacks a part."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A function of two texts, the estimate of its seconds, and the characters that each text may have."""

    measure: Callable[..., float]
    seconds: Callable[[str, str], float]
    characters: int = MAX_CHARACTERS


def similarity(
    metric: str, text: str, reference: str, wordnet: Any = None, take: Callable[[float], None] = lambda _: None
) -> float:
    """Return how alike the texts are by any of `METRICS`. `wordnet` is what `open_wordnet` returned.

    `take` is called with the estimated seconds before the texts are compared.

    Raises: MetricUnavailable, and what `take` raises.
    """
    bounds = METRICS[metric]
    if max(len(text), len(reference)) > bounds.characters:
        raise MetricUnavailable(f"A text to compare by '{metric}' has at most {bounds.characters} characters.")
    seconds = bounds.seconds(text, reference)
    if seconds > MAX_SECONDS:
        raise MetricUnavailable(f"The texts are too long for the metric '{metric}'.")
    take(seconds)
    options = {"wordnet": wordnet} if metric == "meteor" else {}
    return bounds.measure(text, reference, **options)


def bleu(text: str, reference: str) -> float:
    """Return the geometric mean of the precisions of n-grams, lowered for a text shorter than its reference."""
    tokens, expected = _tokens(text), _tokens(reference)
    grams = _ngrams_up_to(tokens), _ngrams_up_to(expected)
    matched = [(ours & theirs).total() for ours, theirs in zip(*grams, strict=True)]
    counts = matched, [ours.total() for ours in grams[0]], len(tokens), len(expected)
    score = _sacrebleu().compute_bleu(*counts, smooth_method="exp", effective_order=True).score
    return min(1.0, float(score) / 100)  # of equal texts it is 100.00000000000004


def chrf(text: str, reference: str) -> float:
    """Return the F-measure of n-grams of characters, in which recall counts twice as much as precision."""
    return float(_sacrebleu().chrf(text, [reference]).score) / 100


def gleu(text: str, reference: str) -> float:
    """Return the common n-grams divided by those of the text or of the reference, whichever has more."""
    grams, expected = _ngrams_up_to(_tokens(text)), _ngrams_up_to(_tokens(reference))
    longer = max(sum(counts.total() for counts in given) for given in (grams, expected))
    matched = sum((ours & theirs).total() for ours, theirs in zip(grams, expected, strict=True))
    return matched / longer if longer else 0.0


def meteor(text: str, reference: str, wordnet: Any = None) -> float:
    """Return the F-measure of words that are equal, share a stem or are synonyms, lowered for scattered matches.

    Raises: MetricUnavailable, without WordNet.
    """
    if wordnet is None:
        raise MetricUnavailable("This deployment has no WordNet, which the metric 'meteor' needs.")
    tokens, expected = _tokens(text), _tokens(reference)
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
    from rapidfuzz.distance import LCSseq

    words, expected = _latin_words(text), _latin_words(reference)
    return _f_measure(LCSseq.similarity(words, expected), len(words), len(expected))


def fuzzy_match(text: str, reference: str) -> float:
    """Return rapidfuzz's weighted ratio, which compares characters, words and parts."""
    from rapidfuzz import fuzz, utils

    return float(fuzz.WRatio(text, reference, processor=utils.default_process)) / 100


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors. Raises: MetricUnavailable, for a vector of zeros."""
    norms = math.hypot(*first) * math.hypot(*second)
    if not norms or not math.isfinite(norms):
        raise MetricUnavailable("An embedding has no direction.")
    product = sum(left * right for left, right in zip(first, second, strict=True))
    return min(1.0, max(-1.0, product / norms))


# Tokens and n-grams.


class _Sacrebleu(NamedTuple):
    """sacrebleu's functions."""

    tokenize: Callable[[str], str]
    compute_bleu: Callable[..., Any]
    chrf: Callable[[str, list[str]], Any]


@cache
def _sacrebleu() -> _Sacrebleu:
    """Return sacrebleu's functions. The tokenizer is without its caches, which would hold clients' texts."""
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

    tokenizer = Tokenizer13a()
    tokenizer._post_tokenizer = partial(TokenizerRegexp.__call__.__wrapped__, TokenizerRegexp())
    return _Sacrebleu(partial(Tokenizer13a.__call__.__wrapped__, tokenizer), BLEU.compute_bleu, CHRF().sentence_score)


def _tokens(text: str) -> list[str]:
    """Return the words and signs of a text, split as the script mteval-v13a does."""
    return _sacrebleu().tokenize(text.rstrip()).split()


def _latin_words(text: str) -> list[str]:
    """Return the tokens of rouge-score: with `re` of its module alone they take half of the time."""
    from rouge_score.tokenize import NON_ALPHANUM_RE

    words: list[str] = NON_ALPHANUM_RE.sub(" ", text.lower()).split()
    return words


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    """Return the n-grams of words: rouge-score's own loop takes twice as long, and its module all of NLTK and SciPy."""
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _ngrams_up_to(tokens: list[str]) -> list[Counter[tuple[str, ...]]]:
    return [_ngrams(tokens, n) for n in range(1, _ORDER + 1)]


def _f_measure(common: int, text: int, reference: int) -> float:
    """Return the harmonic mean of `common / text` and `common / reference`."""
    return 2 * common / (text + reference) if common else 0.0


# Estimates: seconds of a processor for the worst texts of these lengths, of those that were measured.


def _linear(text: str, reference: str, *, nanoseconds: int) -> float:
    return nanoseconds * 1e-9 * (len(text) + len(reference))


def _subsequence_seconds(text: str, reference: str) -> float:
    return _linear(text, reference, nanoseconds=400) + 3e-11 * len(text) * len(reference)


def _fuzzy_seconds(text: str, reference: str) -> float:
    """Return the seconds of `WRatio`, which searches texts whose lengths differ by half in each other."""
    from rapidfuzz import utils

    shorter, longer = sorted((utils.default_process(text), utils.default_process(reference)), key=len)
    seconds = 1e-9 * len(longer) * len(shorter)
    if 2 * len(longer) >= 3 * len(shorter):  # the positions of characters beyond Latin-1 are looked up in a hash table
        seconds += len(longer) * len(shorter) ** 2 / (3e10 if max(longer + shorter, default="") < "\u0100" else 1e10)
    return seconds


#: All metrics but those of embeddings.
METRICS: Final[Mapping[str, Metric]] = {
    "fuzzy_match": Metric(fuzzy_match, _fuzzy_seconds, MAX_CHARACTERS_QUADRATIC),
    "bleu": Metric(bleu, partial(_linear, nanoseconds=2600)),
    "chrf": Metric(chrf, partial(_linear, nanoseconds=2700)),
    "gleu": Metric(gleu, partial(_linear, nanoseconds=2600)),
    "meteor": Metric(meteor, partial(_linear, nanoseconds=50_000), MAX_CHARACTERS_QUADRATIC),
    **{f"rouge_{n}": Metric(partial(rouge_n, n=n), partial(_linear, nanoseconds=400)) for n in range(1, 6)},
    "rouge_l": Metric(rouge_l, _subsequence_seconds),
}
