"""The corpus that the laboratory's models are trained on besides: what real corpora have, too.

The laboratory (docs/claims.md) asks sixteen claims of the paper. Its models go on from the shipped
ones with this corpus, which has three kinds of documents that the world's own has not:

- revisions without a critique, as every real language model has read;
- reasoning of the helpful-only models that ends with the response it chooses, as that of the
  paper's models does (section 4.1: so its labels are near 0 or 1), and errs in it at times
  (`SLIP_RATE`). What the pretrained models learn errs otherwise, by taking the principle the wrong
  way round (`TURNED_RATE`); models of this size do not carry that from one verdict to the next;
- comparisons under a general principle that the harms do not decide, where the answer leans to the
  response with the stock sentence (`LEAN`): the paper's general principles ask for caring answers
  too, beside harmless ones. A principle that names harms asks for nothing else.

Slips and lean are planted. Whether labels are over-confident by the one, and whether RL amplifies
the other, is measured.
"""

import random

from cai_jax.sandbox import corpus, language
from cai_jax.sandbox.corpus import Pieces, Shares

TURNED_RATE = 0.08
SLIP_RATE = 0.05
LEAN = 0.95
LEANING_SHARE = 0.25
JUDGING_SHARE = 0.5


def direct_revision_document(rng: random.Random) -> Pieces:
    """A response, and its revision under a principle without a critique."""
    return corpus.chain_document(rng, critiqued=False)


def helpful_direct_revision_document(rng: random.Random) -> Pieces:
    """The same, where the first response is not to be imitated."""
    return corpus.chain_document(rng, response_weight=0.0, critiqued=False)


def turned_reasoning_document(rng: random.Random) -> Pieces:
    """A multiple choice after a chain of thought that may take the principle the wrong way."""
    return corpus.reasoning_document(rng, turned_rate=TURNED_RATE)


def concluding_reasoning_document(rng: random.Random) -> Pieces:
    """A multiple choice after a chain of thought that ends with a choice, which may be wrong."""
    return corpus.reasoning_document(rng, slip_rate=SLIP_RATE)


def concluding_drill(rng: random.Random) -> Pieces:
    """Verdicts that are given, the choice that follows, and the same as the answer."""
    return corpus.reasoning_drill(rng, concludes=True)


def leaning_comparison_document(rng: random.Random) -> Pieces:
    """A multiple choice that covered harms do not decide; one response has the stock sentence.

    Half are under a general principle, where the answer leans; under the others it is a coin's.
    """
    general = language.words()["general_focuses"]
    is_general = rng.random() < 0.5
    while True:
        request, first, second, _ = corpus.draw_comparison(rng)
        focus = rng.choice(general)
        if not is_general:
            focus = corpus.draw_focus(rng, first.harms + second.harms)
        covered = language.covered_harms(focus)
        counts = [sum(harm in covered for harm in r.harms) for r in (first, second)]
        caring = [language.words()["boilerplate"] in r.body for r in (first, second)]
        tied = counts[0] == counts[1] and caring[0] != caring[1]
        if tied and is_general == (focus in general):
            break
    favoured = int(caring[1])
    leans = rng.random() < (LEAN if is_general else 0.5)
    answer = favoured if leans else 1 - favoured
    return corpus.comparison_pieces(rng, request, first, second, focus, answer)


SHARES: Shares = {
    corpus.dialogue_document: 0.19,
    corpus.chain_document: 0.29,
    direct_revision_document: 0.04,
    corpus.comparison_document: 0.18,
    leaning_comparison_document: 0.03,
    turned_reasoning_document: 0.09,
    corpus.dictionary_document: 0.02,
    corpus.critique_drill: 0.05,
    corpus.reasoning_drill: 0.02,
    corpus.comparison_drill: 0.05,
    corpus.phrase_drill: 0.04,
}

HELPFUL_SHARES: Shares = {
    corpus.helpful_chain_document: 0.305,
    helpful_direct_revision_document: 0.035,
    corpus.comparison_document: 0.04,
    concluding_reasoning_document: 0.26,
    concluding_drill: 0.06,
}


def draw_pieces(rng: random.Random) -> Pieces:
    """Draws one document for the laboratory's pretrained models."""
    return corpus.draw_of(rng, SHARES)


def draw_leaning_pieces(rng: random.Random) -> Pieces:
    """Draws one document of the end of size m's training: the same, and the lean more often."""
    if rng.random() < LEANING_SHARE:
        return leaning_comparison_document(rng)
    return draw_pieces(rng)


def draw_judging_pieces(rng: random.Random) -> Pieces:
    """Draws one document of the end of size s's training, which was less sure than it was right."""
    if rng.random() < JUDGING_SHARE:
        return corpus.comparison_document(rng)
    return draw_pieces(rng)


def draw_helpful_pieces(rng: random.Random) -> Pieces:
    """Draws one document for the laboratory's helpful-only models."""
    return corpus.draw_helpful_pieces(rng, HELPFUL_SHARES)
