"""Write the scores of the reference libraries into a fixture: `python write_text_metrics.py text_metrics.json WORDNET`.

The pairs stand in the fixture already: sentences of this repository's documents before and after an edit, and a few
special ones. Run it in an environment that has the libraries of `versions` and none of our code. WORDNET is a folder
as Debian's wordnet-base has it. Synonyms that occur in a pair are written too, so that the test needs no WordNet.
"""

import io
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nltk import data
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.stem.porter import PorterStemmer
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import single_meteor_score
from rapidfuzz import fuzz, utils
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu, sentence_chrf
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

LIBRARIES = ("sacrebleu", "nltk", "rouge-score", "rapidfuzz")
ROUGE = {f"rouge_{n}": f"rouge{n}" for n in range(1, 6)} | {"rouge_l": "rougeL"}
rouge = RougeScorer(list(ROUGE.values()), use_stemmer=False)
tokenize = Tokenizer13a()
stemmer = PorterStemmer()


class WordNet(WordNetCorpusReader):
    def open(self, file: str) -> Any:
        if file == "lexnames":
            return io.StringIO("".join(f"{n:02} noun.all 0\n" for n in range(45)))
        return super().open(file)

    def map_wn(self, version: str = "") -> None:
        """Needs a second WordNet."""


def words(text: str) -> list[str]:
    return tokenize(text.rstrip()).split()


def scores(text: str, reference: str, wordnet: WordNet) -> dict[str, float]:
    hypothesis, expected = words(text), words(reference)
    found = {
        "fuzzy_match": fuzz.WRatio(text, reference, processor=utils.default_process) / 100,
        "bleu": sentence_bleu(text, [reference]).score / 100,
        "chrf": sentence_chrf(text, [reference]).score / 100,
        "gleu": float(sentence_gleu([expected], hypothesis)),
        "meteor": single_meteor_score(expected, hypothesis, wordnet=wordnet) if hypothesis and expected else 0.0,
    }
    found |= {ours: rouge.score(reference, text)[theirs].fmeasure for ours, theirs in ROUGE.items()}
    return {name: round(score, 9) for name, score in found.items()}


def synonyms(pairs: list[dict[str, Any]], wordnet: WordNet) -> dict[str, list[str]]:
    """Return the synonyms of all words and of their stems, which METEOR looks up where words differ."""
    known = {word.lower() for pair in pairs for side in ("text", "reference") for word in words(pair[side])}
    known |= {stemmer.stem(word) for word in known}
    found = {}
    for word in sorted(known):
        names = {lemma.name() for synset in wordnet.synsets(word) for lemma in synset.lemmas()}
        if others := names & known - {word}:
            found[word] = sorted(others)
    return found


def main() -> None:
    data.path.append(sys.argv[2])
    path, wordnet = Path(sys.argv[1]), WordNet(sys.argv[2], False)
    pairs = json.loads(path.read_text())["pairs"]
    for pair in pairs:
        pair["scores"] = scores(pair["text"], pair["reference"], wordnet)
    fixture = {
        "versions": {name: version(name) for name in LIBRARIES},
        "synonyms": synonyms(pairs, wordnet),
        "pairs": pairs,
    }
    path.write_text(json.dumps(fixture, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
