"""Interpolated Kneser-Ney n-grams over characters: what a dialogue language model has to beat."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

from datamodules.tokenizers.wordpiece import ALONE, KINDS, PLAIN, normalize

# No symbol of a text is white space.
START, END, UNKNOWN = "\n", "\t", " "
USUAL_DISCOUNT = 0.75


class KneserNey:
    """Interpolated Kneser-Ney (Ney, Essen and Kneser 1994; Chen and Goodman 1998, section 2.7) over characters.

    A turn is a text of its own: its first character is predicted from a start symbol, and the end of the turn is
    predicted as a language model predicts [SEP]. The text is lower-cased and without accents, white space and what
    BERT's cleaning drops, as the tokenizers have it by default. n-grams below the highest order count the distinct
    symbols before them, but those at the start, before which nothing stands, their occurrences. Unigrams are
    interpolated with the uniform distribution over the characters seen, the end symbol and one unknown character.

    Args:
        turns: the training texts.
        order: 2 for bigrams, whose context is one symbol.
        discount: taken from every count; None: n1 / (n1 + 2 n2) for each order, of n1 n-grams counted once and n2
            counted twice, and 0.75 where there are none of either.

    Raises:
        ValueError: an option out of its range, or no turn.
    """

    def __init__(self, turns: Iterable[str], order: int = 2, discount: float | None = None):
        if order < 1:
            raise ValueError(f"order={order}: must be at least 1")
        if discount is not None and not 0 < discount < 1:
            raise ValueError(f"discount={discount}: must lie between 0 and 1")
        self.order = order
        grams: Counter[str] = Counter()
        for turn in turns:
            text = START + symbols_of(turn)[0] + END
            grams.update(text[max(0, end - order) : end] for end in range(2, len(text) + 1))
        if not grams:
            raise ValueError("turns: there are none to count")
        self.vocabulary = {gram[-1] for gram in grams} | {UNKNOWN}
        self.bits_per_unknown = math.log2(max(len(self.vocabulary) - 2, 2))
        levels = []
        for length in range(order, 0, -1):
            own = {gram: count for gram, count in grams.items() if len(gram) == length}
            levels.append(_Level(own, discount))
            # Shorter ones are at a turn's start: nothing precedes them, their occurrences are what counts.
            grams = Counter({gram: count for gram, count in grams.items() if len(gram) < length})
            grams.update(gram[1:] for gram in own if length > 1)
        self._levels = levels[::-1]

    def probability(self, symbol: str, context: str) -> float:
        """Of one symbol of `vocabulary` after a context that begins with START or is `order` - 1 characters long."""
        probability = 1 / len(self.vocabulary)
        for length, level in enumerate(self._levels):
            if length > len(context):
                break
            probability = level.interpolated(context[len(context) - length :], symbol, probability)
        return probability

    def bits(self, turn: str) -> float:
        """-log2 of a turn's probability, its end included.

        A character that was never seen costs the bits of UNKNOWN and a uniform code over the characters seen, as
        `lightning_modules.replies.ReplyScores` charges an [UNK]; a language model, whose vocabulary leaves out rare
        characters, has more such characters.
        """
        text = START + symbols_of(turn)[0] + END
        bits = 0.0
        for index in range(1, len(text)):
            symbol = text[index]
            if symbol not in self.vocabulary:
                symbol = UNKNOWN
                bits += self.bits_per_unknown
            bits -= math.log2(self.probability(symbol, text[max(0, index - self.order + 1) : index]))
        return bits

    def bits_per_char(self, turns: Iterable[str]) -> float:
        """The bits of the turns by their original characters, which are counted as `Encodings.chars` counts them.

        Raises:
            ValueError: the turns have no character.
        """
        bits, characters = 0.0, 0
        for turn in turns:
            bits += self.bits(turn)
            characters += symbols_of(turn)[1]
        if not characters:
            raise ValueError("turns: there is no character in them")
        return bits / characters


class _Level:
    """The n-grams of one length: of each the count, of each context the sum of counts and the number of n-grams."""

    def __init__(self, counts: dict[str, int], discount: float | None):
        self.counts = counts
        if discount is None:
            once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
            discount = once / (once + 2 * twice) if once and twice else USUAL_DISCOUNT
        self.discount = discount
        self.contexts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for gram, count in counts.items():
            of_context = self.contexts[gram[:-1]]
            of_context[0] += count
            of_context[1] += 1

    def interpolated(self, context: str, symbol: str, lower: float) -> float:
        """The symbol's probability after `context`, `lower` being that after a shorter one."""
        if context not in self.contexts:
            return lower
        total, distinct = self.contexts[context]
        kept = max(self.counts.get(context + symbol, 0) - self.discount, 0.0)
        return (kept + self.discount * distinct * lower) / total


def symbols_of(turn: str) -> tuple[str, int]:
    """The characters that are predicted of a turn, and how many original ones they come from.

    They differ where the normal form has several for one: a Hangul syllable's letters.
    """
    normal, origin = normalize(turn, lowercase=True)
    kept = [index for index, char in enumerate(normal) if KINDS[char] in (PLAIN, ALONE)]
    return "".join([normal[index] for index in kept]), len({origin[index] for index in kept})
