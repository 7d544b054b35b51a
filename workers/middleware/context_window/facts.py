"""`key_facts`: of the older turns only the sentences that matter, as a note to the model. No model is asked for it.

    score = 0.7 * cosine with the last question + 0.3 * cosine with the centre of all the sentences

over tf-idf of their words (`ranking`). The second part is the centroid of MEAD (Radev et al. 2004, Information
Processing & Management 40); the first makes it a summary for the question. As many of the best as fit, in their order.
"""

import asyncio
from typing import Final

from jobs.inference.context_options import Terms
from workers.middleware.context_window import ranking
from workers.middleware.context_window.history import History
from workers.middleware.context_window.truncation import Body, Cut, Fits, least

QUESTION: Final = 0.7
CENTRE: Final = 0.3
_NOTE: Final = "From earlier in this conversation:"


async def key_facts(history: History, terms: Terms, fits: Fits) -> Cut | None:
    dropped = [n for turn in history.older(terms.kept_turns) for n in turn]
    found, order = await asyncio.to_thread(_ranked, history, dropped)  # of megabytes it takes seconds

    def body(many: int) -> Body:
        kept = [found[n] for n in sorted(order[:many])]
        return history.noted(dropped, _NOTE, [f"{speaker}: {sentence}" for speaker, sentence in kept])

    left_out = await least(len(order), lambda fewer: fits(body(len(order) - fewer)))
    if left_out is None:
        return None
    many = len(order) - left_out
    return body(many), {"dropped_messages": len(dropped), "facts": many, "facts_left_out": left_out}


def _ranked(history: History, places: list[int]) -> tuple[list[tuple[str, str]], list[int]]:
    """What was said, and by whom, each thing once; and the order of its worth."""
    said = ((history.speaker(n), one) for n in places for one in ranking.sentences(history.text(n)))
    found = list(dict.fromkeys(said))
    return found, _best_first([sentence for _, sentence in found], history.question)


def _best_first(sentences: list[str], question: str) -> list[int]:
    weighed, asked = ranking.weights(sentences, question)
    middle = ranking.centre(weighed)
    scores = [QUESTION * ranking.cosine(one, asked) + CENTRE * ranking.cosine(one, middle) for one in weighed]
    return sorted(range(len(sentences)), key=lambda n: (-scores[n], n))
