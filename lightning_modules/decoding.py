"""Replies from a causal language model: sampling and beam search, in batches and with the network's cache.

Top-k, then top-p, as in kexue.fm/archives/7718 (bert4keras' `random_sample`); nucleus sampling is of Holtzman et al. 2020
(arXiv 1904.09751), the repetition penalty of Keskar et al. 2019 (arXiv 1909.05858), no repeated n-grams of Paulus et al.
2018 (arXiv 1705.04304); beams are searched as by transformers' `generate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lightning_modules.draws import RANGE, draw

if TYPE_CHECKING:
    from lightning_modules.networks.causal_lm import CausalLM

CANDIDATE, SAMPLE = range(2)
# Options beyond it, or below its inverse, would be infinite or 0 in float32.
HUGE = 1e30


class Decoding:
    """How a reply is made. Lengths are in tokens, without the end token.

    Args:
        temperature: logits are divided by it; near 0 the most probable token is taken. Not used with beams.
        top_k: a token is drawn from the k most probable ones; 0: from all, 1: the most probable. Not used with beams.
        top_p: of those, from the most probable ones that together have this probability, the token that crosses it
            included. Not used with beams.
        min_length: before so many tokens neither the end token nor a stop word comes.
        max_length: after so many tokens a reply is cut.
        repetition_penalty: above 1 tokens that the reply already has become less probable; those of the history do not.
        no_repeat_ngram: no n-gram of so many tokens comes twice in a reply; 0: any may.
        beams: above 1 so many beams are searched instead of drawing tokens; they are ranked by log-probability a token.
        candidates: replies to make of each history, best first.
        banned_words: texts that a reply never holds, in upper or lower case, not even inside a longer word.
        stop_words: texts before which a reply ends, in upper or lower case; a token that holds more than one goes whole.

    Raises:
        ValueError: an option is out of its range, or contradicts another; the message starts with `decoding.` and its name.
    """

    def __init__(
        self,
        temperature: Annotated[float, "x > 0"] = 1.0,
        top_k: Annotated[int, "x >= 0"] = 5,
        top_p: Annotated[float, "0 < x <= 1"] = 1.0,
        min_length: Annotated[int, "x >= 0"] = 1,
        max_length: Annotated[int, "x >= 1"] = 32,
        repetition_penalty: Annotated[float, "x > 0"] = 1.0,
        no_repeat_ngram: Annotated[int, "x >= 0"] = 0,
        beams: Annotated[int, "x >= 1"] = 1,
        candidates: Annotated[int, "x >= 1"] = 1,
        banned_words: list[str] | None = None,
        stop_words: list[str] | None = None,
    ):
        self.temperature = _number("temperature", temperature)
        self.top_k = _integer("top_k", top_k, 0)
        self.top_p = _number("top_p", top_p)
        self.min_length = _integer("min_length", min_length, 0)
        self.max_length = _integer("max_length", max_length, 1)
        self.repetition_penalty = _number("repetition_penalty", repetition_penalty)
        self.no_repeat_ngram = _integer("no_repeat_ngram", no_repeat_ngram, 0)
        self.beams = _integer("beams", beams, 1)
        self.candidates = _integer("candidates", candidates, 1)
        self.banned_words = _words("banned_words", banned_words)
        self.stop_words = _words("stop_words", stop_words)
        if self.top_p > 1:
            raise ValueError(f"decoding.top_p={top_p}: must be at most 1")
        if self.min_length > self.max_length:
            raise ValueError(
                f"decoding.min_length={min_length}: must be at most decoding.max_length={max_length}"
            )
        if self.beams > 1 and self.candidates > self.beams:
            raise ValueError(
                f"decoding.candidates={candidates}: must be at most decoding.beams={beams}, or decoding.beams=1 to draw them"
            )

    def replace(self, **changes: Any) -> Decoding:
        """The same options but those of `changes`.

        Raises:
            ValueError: as the constructor does, or there is no such option.
        """
        for name in changes.keys() - vars(self).keys():
            raise ValueError(f"decoding.{name}: no such option; there are {', '.join(vars(self))}")
        return Decoding(**vars(self) | changes)

    def __repr__(self) -> str:
        return f"Decoding({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Prompt(NamedTuple):
    """What a reply follows.

    Attributes:
        ids: tokens, at least one.
        roles: the network's row of each token's role; None: tokens have no role. Of all prompts of a call, or of none.
        reply_role: that of the reply's tokens.
    """

    ids: list[int]
    roles: list[int] | None = None
    reply_role: int | None = None


class Reply(NamedTuple):
    """What is said.

    Attributes:
        ids: tokens, without the end token.
        log_prob: of `ids` and of the end token, if it came, in nats: under the model itself, before temperature, filters
            and penalties.
        finished: the end token or a stop word came; otherwise the reply was cut at `max_length`.
        scored: tokens of which `log_prob` is.
    """

    ids: list[int]
    log_prob: float
    finished: bool
    scored: int


class Vocabulary(NamedTuple):
    """The tokens of a tokenizer.

    Attributes:
        size: ids 0 .. size - 1 are tokens; the network may have more rows.
        end_id: what ends a reply.
        never: further ids that a reply has not.
        decode, encode: ids to text, and back.
    """

    size: int
    end_id: int
    never: tuple[int, ...]
    decode: Callable[[list[int]], str]
    encode: Callable[[str], list[int]]


@torch.inference_mode()
def generate(
    network: CausalLM,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    vocabulary: Vocabulary,
    seed: int | Sequence[int],
) -> list[list[Reply]]:
    """Replies to each prompt: `decoding.candidates` of them, by log-probability a token (the end token is one), best first;
    with beams fewer if the search found no more. Drawn candidates may be equal.

    A prompt's replies do not depend on the other prompts of the call.

    Args:
        network: in eval mode.
        seed: of all prompts, which then draw by their place in the list; or one for each prompt, which then draws as it
            would alone.

    Raises:
        ValueError: a prompt is empty, or there is not one seed a prompt.
    """
    if not prompts:
        return []
    rules = _Rules(decoding, vocabulary)
    if decoding.beams > 1:
        return _search_beams(_Rows(network, prompts, vocabulary), rules)
    sampling = _Sampling(network, prompts, rules, seed)
    while sampling.left:
        sampling.advance()
    size = decoding.candidates
    groups = [sampling.replies[start : start + size] for start in range(0, len(sampling.replies), size)]
    return [sorted(group, key=lambda reply: -_per_token(reply)) for group in groups]


@torch.inference_mode()
def stream(
    network: CausalLM, prompt: Prompt, decoding: Decoding, vocabulary: Vocabulary, seed: int
) -> Iterator[list[int]]:
    """The ids of one drawn reply so far, each list continuing the one before it; the last has those that `generate` gives
    for the prompt alone with one candidate and without beams, which are not used here.

    What may become a stop word is held back until it cannot.
    """
    rules = _Rules(decoding.replace(candidates=1, beams=1), vocabulary)
    sampling = _Sampling(network, [prompt], rules, seed)
    shown = 0
    while sampling.left:
        sampling.advance()
        if sampling.left:
            ids = sampling.ids[0].tolist()
            settled = rules.settled(ids)
            if settled > shown:
                shown = settled
                yield ids[:settled]
    ids = sampling.replies[0].ids
    if len(ids) > shown or not ids:
        yield ids


class _Rules:
    """What a reply may say next, and when it ends."""

    def __init__(self, decoding: Decoding, vocabulary: Vocabulary):
        self.decoding, self.vocabulary = decoding, vocabulary
        self.banned = self._spellings(decoding.banned_words)
        self.stops = self._spellings(decoding.stop_words)
        never = set(vocabulary.never) - {vocabulary.end_id}
        self.never = sorted(token for token in never if token < vocabulary.size)
        # All of them see the reply's ids only: what the history says may be said again.
        self.processors = LogitsProcessorList()
        if decoding.repetition_penalty != 1:
            self.processors.append(RepetitionPenaltyLogitsProcessor(_moderate(decoding.repetition_penalty)))
        if decoding.no_repeat_ngram:
            self.processors.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram))
        self.filters = LogitsProcessorList()
        if decoding.temperature != 1:
            self.filters.append(TemperatureLogitsWarper(_moderate(decoding.temperature)))
        if decoding.top_k:
            self.filters.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            self.filters.append(TopPLogitsWarper(decoding.top_p))

    def _spellings(self, words: list[str] | None) -> list[str]:
        """The words as typed, and as the vocabulary spells them where it has all of their characters."""
        spellings = [word.lower() for word in words or ()]
        for word in words or ():
            ids = self.vocabulary.encode(word)
            if not set(ids) & set(self.vocabulary.never):
                spellings.append(self.vocabulary.decode(ids).lower())
        return [word for word in dict.fromkeys(spellings) if word]

    def allowed(self, scores: Tensor, ids: Tensor) -> Tensor:
        """Scores [R, V] of what follows the replies `ids` [R, t], penalised, and -inf of what must not."""
        end, size = self.vocabulary.end_id, self.vocabulary.size
        own = scores
        # A penalty near 0 may reach infinity, and the filters take differences.
        scores = self.processors(ids, scores).clamp(max=torch.finfo(scores.dtype).max)
        scores[:, self.never] = -math.inf
        scores[:, size:] = -math.inf
        if ids.shape[1] < self.decoding.min_length:
            scores[:, end] = -math.inf
        return self.or_end(scores, own)

    def or_end(self, scores: Tensor, own: Tensor) -> Tensor:
        """`scores` [R, V], but where nothing is allowed the reply may end, with its score of `own` [R, V]."""
        end = self.vocabulary.end_id
        nothing = scores.amax(-1) == -math.inf
        scores[:, end] = torch.where(nothing, own[:, end].clamp(min=-1e9), scores[:, end])
        return scores

    def refuses(self, ids: list[int]) -> bool:
        """A banned word is in the reply, or a stop word comes too early."""
        if ids[-1] == self.vocabulary.end_id or not (self.banned or self.stops):
            return False
        text = self._text(ids)
        if any(word in text for word in self.banned):
            return True
        kept = self._before_stop(ids, text)
        return kept is not None and kept < self.decoding.min_length

    def ended(self, ids: list[int], log_probs: list[float]) -> Reply | None:
        """The reply, if the last of `ids` ends it; `log_probs` are those of `ids`."""
        if ids[-1] == self.vocabulary.end_id:
            return Reply(ids[:-1], math.fsum(log_probs), True, len(ids))
        kept = self._before_stop(ids, self._text(ids)) if self.stops else None
        if kept is not None:
            return Reply(ids[:kept], math.fsum(log_probs[:kept]), True, kept)
        if len(ids) == self.decoding.max_length:
            return Reply(ids, math.fsum(log_probs), False, len(ids))
        return None

    def settled(self, ids: list[int]) -> int:
        """So many tokens no stop word can take back, whatever follows."""
        if not self.stops:
            return len(ids)
        text = self._text(ids)
        open_ends = [
            length for word in self.stops for length in range(len(word)) if text.endswith(word[:length])
        ]
        return self._tokens_of(ids, text[: len(text) - max(open_ends)])

    def _text(self, ids: list[int]) -> str:
        return self.vocabulary.decode(ids).lower()

    def _before_stop(self, ids: list[int], text: str) -> int | None:
        """How many tokens stand before the first stop word; None: there is none."""
        starts = [text.index(word) for word in self.stops if word in text]
        return self._tokens_of(ids, text[: min(starts)]) if starts else None

    def _tokens_of(self, ids: list[int], text: str) -> int:
        """How many of the first tokens lie within `text`, a beginning of theirs."""
        return next(kept for kept in range(len(ids), -1, -1) if text.startswith(self._text(ids[:kept])))


class _Rows:
    """What the network reads: prompts at first, then a token of each row a call. Rows may be repeated, and leave.

    Attributes:
        logits: [R, V], of what follows.
    """

    def __init__(self, network: CausalLM, prompts: Sequence[Prompt], vocabulary: Vocabulary):
        for number, prompt in enumerate(prompts):
            if not prompt.ids:
                raise ValueError(f"prompts[{number}]: has no tokens")
        self.network = network
        self.device = next(network.parameters()).device
        longest = max(len(prompt.ids) for prompt in prompts)

        def padded(rows: Iterator[Sequence[int]], value: int) -> Tensor:
            lists = [[value] * (longest - len(row)) + list(row) for row in rows]
            return torch.tensor(lists, device=self.device)

        self.mask = padded(([1] * len(prompt.ids) for prompt in prompts), 0).bool()
        roles = self.roles = None
        if prompts[0].roles is not None:
            roles = padded((prompt.roles for prompt in prompts), prompts[0].roles[0])
            self.roles = torch.tensor([[prompt.reply_role] for prompt in prompts], device=self.device)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.positions = positions[:, -1:] + 1
        ids = padded((prompt.ids for prompt in prompts), vocabulary.end_id)
        logits, self.cache = network.step(ids, roles, self.mask, positions)
        self.logits = _sound(logits)

    def read(self, tokens: Tensor) -> None:
        """A token [R] of each row."""
        self.mask = torch.cat((self.mask, torch.ones_like(self.mask[:, :1])), 1)
        tokens = tokens.to(self.device)[:, None]
        logits, self.cache = self.network.step(tokens, self.roles, self.mask, self.positions, self.cache)
        self.logits = _sound(logits)
        self.positions = self.positions + 1

    def select(self, index: list[int]) -> None:
        """Keep these rows, in this order; one may come several times."""
        self.logits = self.logits[index]
        rows = torch.tensor(index, device=self.device)
        self.cache = self.network.reorder(self.cache, rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        self.roles = None if self.roles is None else self.roles[rows]


class _Sampling:
    """Replies that are drawn token by token; what is finished leaves the batch.

    Attributes:
        left: of each row that is not finished, its index in `replies`.
        replies: those of the first prompt, then of the second, ...
        ids: of the rows that are left, [R, t].
    """

    def __init__(
        self, network: CausalLM, prompts: Sequence[Prompt], rules: _Rules, seed: int | Sequence[int]
    ):
        copies = rules.decoding.candidates
        self.rules = rules
        keys = _keys(seed, len(prompts), copies)
        self.rows = _Rows(network, prompts, rules.vocabulary)
        if copies > 1:
            # The prompts were read once.
            self.rows.select([row for row in range(len(prompts)) for _ in range(copies)])
        self.keys = keys.to(self.rows.logits.device)
        self.left = list(range(len(keys)))
        self.replies: list[Reply | None] = [None] * len(keys)
        self.ids = self.keys.new_zeros(len(keys), 0)
        self.log_probs = self.rows.logits.new_zeros(len(keys), 0)

    def advance(self) -> None:
        """Draw a token of each row that is left."""
        tokens = self._draw()[:, None]
        self.ids = torch.cat((self.ids, tokens), 1)
        self.log_probs = torch.cat((self.log_probs, _log_softmax(self.rows.logits).gather(1, tokens)), 1)
        stay = []
        for row, (ids, log_probs) in enumerate(zip(self.ids.tolist(), self.log_probs.tolist(), strict=True)):
            reply = self.rules.ended(ids, log_probs)
            if reply is None:
                stay.append(row)
            else:
                self.replies[self.left[row]] = reply
        if len(stay) < len(self.left):
            self.left = [self.left[row] for row in stay]
            self.ids, self.log_probs, self.keys = self.ids[stay], self.log_probs[stay], self.keys[stay]
            if stay:
                self.rows.select(stay)
        if stay:
            self.rows.read(self.ids[:, -1])

    def _draw(self) -> Tensor:
        """[R]; a token that the rules refuse is ruled out, and another one drawn."""
        scores = self.rules.allowed(self.rows.logits, self.ids)
        tokens = self._drawn(scores, self.keys, 0)
        rows, said = range(len(self.left)), self.ids.tolist()
        for attempt in count(1):
            chosen = tokens.tolist()
            rows = [row for row in rows if self.rules.refuses([*said[row], chosen[row]])]
            if not rows:
                return tokens
            scores[rows, tokens[rows]] = -math.inf
            scores[rows] = self.rules.or_end(scores[rows], self.rows.logits[rows])
            tokens[rows] = self._drawn(scores[rows], self.keys[rows], attempt)

    def _drawn(self, scores: Tensor, keys: Tensor, attempt: int) -> Tensor:
        """[R], from scores [R, V] by a uniform number a row, which only its key, place and attempt decide."""
        if self.rules.decoding.top_k == 1:
            return scores.argmax(-1)
        place = self.ids.shape[1]
        # Temperatures near 0 must not overflow: the largest score becomes 0.
        filtered = self.rules.filters(None, scores - scores.amax(-1, keepdim=True))
        cumulative = filtered.softmax(-1).cumsum(-1, dtype=torch.float64)
        uniform = draw(0, SAMPLE, attempt, keys, torch.full_like(keys, place)).double() / RANGE
        return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(1)


class _Continuation(NamedTuple):
    """A beam with one token more: the beam's row, the token and its log-probability, the score of the whole."""

    score: float
    row: int
    token: int
    log_prob: float


def _search_beams(rows: _Rows, rules: _Rules) -> list[list[Reply]]:
    """As transformers' beam search with its defaults: hypotheses are ranked by log-probability a token (length penalty 1),
    and a prompt's search is over when its best beam falls behind the worst of `beams` finished ones."""
    beams, prompts = rules.decoding.beams, len(rows.logits)
    rows.select([row for row in range(prompts) for _ in range(beams)])
    finished: list[list[tuple[float, Reply]]] = [[] for _ in range(prompts)]
    left = list(range(prompts))
    ids: list[list[int]] = [[]] * (prompts * beams)
    log_probs: list[list[float]] = [[]] * len(ids)
    # At first the beams of a prompt are alike: only one counts.
    scores = ([0.0] + [-math.inf] * (beams - 1)) * prompts
    for length in range(1, rules.decoding.max_length + 1):
        still, chosen = [], []
        for prompt, continuations in zip(left, _best_continuations(rows, rules, ids, scores), strict=True):
            running = []
            for rank, best in enumerate(continuations):
                said = [*ids[best.row], best.token]
                reply = rules.ended(said, [*log_probs[best.row], best.log_prob])
                if reply is None:
                    running.append(best)
                # Those beyond `beams` are there for beams to go on where others end.
                elif rank < beams:
                    _add(finished[prompt], best.score / length, reply, beams)
            full = len(finished[prompt]) == beams
            if running and not (full and running[0].score / length <= finished[prompt][-1][0]):
                still.append(prompt)
                spare = running[0]._replace(score=-math.inf)
                chosen += (running + [spare] * beams)[:beams]
        if not still:
            break
        left = still
        log_probs = [[*log_probs[best.row], best.log_prob] for best in chosen]
        ids = [[*ids[best.row], best.token] for best in chosen]
        scores = [best.score for best in chosen]
        rows.select([best.row for best in chosen])
        rows.read(torch.tensor([best.token for best in chosen]))
    return [[reply for _, reply in replies[: rules.decoding.candidates]] for replies in finished]


def _best_continuations(
    rows: _Rows, rules: _Rules, ids: list[list[int]], scores: list[float]
) -> list[list[_Continuation]]:
    """Of each prompt the 2 x beams best, best first. What the rules refuse is ruled out, and the next best taken.

    Args:
        ids, scores: of the rows, `beams` for each prompt.
    """
    beams = rules.decoding.beams
    own = _log_softmax(rows.logits)
    allowed = rules.allowed(own, torch.tensor(ids, dtype=torch.long, device=own.device))
    before, size = own.new_tensor(scores)[:, None], own.shape[1]
    while True:
        of_prompts = (allowed + before).view(-1, beams * size)
        totals, places = of_prompts.topk(min(2 * beams, beams * size))
        at_rows = places // size + torch.arange(len(places), device=own.device)[:, None] * beams
        tokens = places % size
        parts = (part.tolist() for part in (totals, at_rows, tokens, own[at_rows, tokens]))
        best = [
            [_Continuation(*values) for values in zip(*prompt, strict=True) if values[0] > -math.inf]
            for prompt in zip(*parts, strict=True)
        ]
        refused = [one for prompt in best for one in prompt if rules.refuses([*ids[one.row], one.token])]
        if not refused:
            return best
        allowed[[one.row for one in refused], [one.token for one in refused]] = -math.inf
        allowed = rules.or_end(allowed, own)


def _add(finished: list[tuple[float, Reply]], score: float, reply: Reply, most: int) -> None:
    """Keep the `most` best, each once: a stop word may cut two beams to the same reply."""
    alike = [number for number, (_, other) in enumerate(finished) if other.ids == reply.ids]
    if alike and finished[alike[0]][0] >= score:
        return
    for number in alike:
        del finished[number]
    finished.append((score, reply))
    finished.sort(key=lambda scored: -scored[0])
    del finished[most:]


def _keys(seed: int | Sequence[int], prompts: int, copies: int) -> Tensor:
    """[prompts * copies], of what each reply draws: of its seed, its prompt's place and its own among the candidates."""
    places = list(range(prompts)) if isinstance(seed, int) else [0] * prompts
    seeds = [seed] * prompts if isinstance(seed, int) else list(seed)
    if len(seeds) != prompts:
        raise ValueError(f"seed: there are {len(seeds)} for {prompts} prompts")
    candidates = torch.arange(copies)
    return torch.cat(
        [
            draw(int(own) % RANGE, CANDIDATE, 0, torch.full_like(candidates, place), candidates)
            for own, place in zip(seeds, places, strict=True)
        ]
    )


def _per_token(reply: Reply) -> float:
    return reply.log_prob / max(1, reply.scored)


def _sound(logits: Tensor) -> Tensor:
    """Free of NaN: a network without any sense ends its reply. Apple's GPUs have no float64 for the draws."""
    logits = logits.cpu() if logits.device.type == "mps" else logits
    return logits.nan_to_num(nan=-math.inf, posinf=HUGE, neginf=-math.inf)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).nan_to_num(nan=-math.inf, neginf=-math.inf)


def _moderate(value: float) -> float:
    return min(max(value, 1 / HUGE), HUGE)


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"decoding.{name}={value}: must be a whole number")
    if value < least:
        raise ValueError(f"decoding.{name}={value}: must be at least {least}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"decoding.{name}={value}: must be a finite number")
    if value <= 0:
        raise ValueError(f"decoding.{name}={value}: must be above 0")
    return float(value)


def _words(name: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"decoding.{name}={value}: must be a list of texts")
    if not all(value):
        raise ValueError(f"decoding.{name}={list(value)}: a word must not be empty")
    return list(value)
