"""How good the retrieved passages are: two recalls that are never mixed in one table, and FEVER's title hits.

- `recall_at`: a gold passage, known by its id, is among the top K.
- `answer_recall_at`: one of the top K passages contains an answer, by DPR's token match (Karpukhin et al.
  2020, `dpr/data/qa_validation.py`): text and answer are decomposed (NFD) and split into runs of letters,
  digits and marks and single other characters; the answer's lower-cased tokens must follow one another in the
  text's. As in DPR, pass the passages' texts without their titles. For questions of one's own the tokens are
  `rag.words.answer_tokens`, which are the same but for scripts that are written without spaces, where DPR's make one
  token of a whole sentence and find nothing; the paper's tasks keep DPR's.
- `title_hits_at` (section 4.4): one of the top K passages comes from an article of FEVER's gold evidence.

All return one score a question for each K; NaN where a question has nothing to be judged by.
"""

import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import regex

from rag.errors import UserError
from rag.metrics.qa import as_seen_by, compile_answer, decompose
from rag.words import answer_tokens

Tokens = Callable[[str], list[str]]

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def recall_at(
    ids: Sequence[Sequence[Hashable]] | np.ndarray,
    positive_ids: Sequence[Sequence[Hashable]],
    ks: Sequence[int],
) -> dict[int, np.ndarray]:
    """{K: (N,) scores}, 1.0 where one of the question's gold passage ids is among its K best retrieved ones.

    Ids are compared as text, so that 7 equals "7"; the −1 of an index that finds too few hits nothing.
    NaN where a question has no gold ids. Raises UserError if fewer than the largest K passages were
    retrieved.
    """

    def first_hit(retrieved: Sequence[Hashable], positives: Sequence[Hashable]) -> int | None:
        gold = {str(positive) for positive in positives}
        return next((rank for rank, passage_id in enumerate(retrieved) if str(passage_id) in gold), None)

    rows = ids.tolist() if isinstance(ids, np.ndarray) else ids
    return _hits_at(rows, positive_ids, ks, first_hit)


def answer_recall_at(
    texts: Iterable[Sequence[str]],
    answers: Sequence[Sequence[str]],
    ks: Sequence[int],
    regular: bool = False,
    tokens: Tokens = answer_tokens,
) -> dict[int, np.ndarray]:
    """{K: (N,) scores}, 1.0 where one of the question's K best passages contains one of its answers.

    Args:
        texts: for each question its retrieved passages, best first; read once, one question at a time.
        regular: the answers are regular expressions (CuratedTREC), searched ignoring case, instead of tokens.
        tokens: what is compared; `tokenize` for DPR's own.
    Raises:
        UserError: if fewer than the largest K passages were retrieved.
    """

    def first_hit(retrieved: Sequence[str], right: Sequence[str]) -> int | None:
        contains = answer_matcher(right, regular, tokens)
        return next((rank for rank, text in enumerate(retrieved) if contains(text)), None)

    return _hits_at(texts, answers, ks, first_hit)


def title_hits_at(
    titles: Sequence[Sequence[str]], gold_titles: Sequence[Sequence[str]], ks: Sequence[int]
) -> dict[int, np.ndarray]:
    """{K: (N,) scores}, 1.0 where one of the K best passages has a title of the claim's gold evidence.

    FEVER's own spelling ("Savages_-LRB-2012_film-RRB-") is read as Wikipedia's. NaN for a claim without
    evidence.
    """

    def first_hit(retrieved: Sequence[str], gold: Sequence[str]) -> int | None:
        right = {plain_title(title) for title in gold}
        return next((rank for rank, title in enumerate(retrieved) if plain_title(title) in right), None)

    return _hits_at(titles, gold_titles, ks, first_hit)


def where_not_retrieved(scores: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """(N,) scores of the questions whose passages lack the answer (hits 0); NaN for all others.

    With exact match and answer recall, this is what the generator answers from its weights alone
    (section 4.1: 11.8 % for Natural Questions).
    """
    return np.where(hits == 0, scores, np.nan)


def plain_title(title: str) -> str:
    """FEVER's spelling of a Wikipedia title as the encyclopedia writes it, with composed accents (NFC)."""
    for coded, plain in (
        ("-LRB-", "("),
        ("-RRB-", ")"),
        ("-LSB-", "["),
        ("-RSB-", "]"),
        ("-COLON-", ":"),
        ("_", " "),
    ):
        title = title.replace(coded, plain)
    return unicodedata.normalize("NFC", title)


def has_answer(
    text: str, answers: Sequence[str], regular: bool = False, tokens: Tokens = answer_tokens
) -> bool:
    """Whether a passage contains one of the answers, by a match of tokens or as regular expressions."""
    return answer_matcher(answers, regular, tokens)(text)


def answer_matcher(
    answers: Sequence[str], regular: bool = False, tokens: Tokens = answer_tokens
) -> Callable[[str], bool]:
    """A test "does this text contain one of the answers?", prepared once for a question's many passages."""
    if regular:
        patterns = [(answer, compile_answer(answer)) for answer in answers]
        # DPR decomposes the text and not the expression, which then never matches an accent of its own
        return lambda text: any(one.search(as_seen_by(answer, decompose(text))) for answer, one in patterns)
    which = answer_finder(answers, tokens)
    return lambda text: len(which(text)) > 0


def answer_finder(answers: Sequence[str], tokens: Tokens = answer_tokens) -> Callable[[str], list[int]]:
    """A function from a text to the numbers of the answers (from 0) it contains by a match of `tokens`."""
    # Tokens hold no space, so a run of tokens in a text is a substring of its tokens joined by spaces.
    # Splitting is slow: a text that lacks an answer's longest token as a mere substring is spared it.
    sought = [tokens(answer) for answer in answers]
    words = [max(one, key=len).casefold() if one else None for one in sought]
    phrases = [f" {' '.join(one)} " for one in sought]

    def which(text: str) -> list[int]:
        folded = decompose(text).casefold()
        likely = [number for number, word in enumerate(words) if word is not None and word in folded]
        if not likely:
            return []
        spaced = f" {' '.join(tokens(text))} "
        return [number for number in likely if phrases[number] in spaced]

    return which


def tokenize(text: str) -> list[str]:
    """DPR's tokens in lower case, decomposed: runs of letters, digits and marks, other characters alone."""
    return [token.lower() for token in _TOKEN.findall(decompose(text))]


def _hits_at(
    retrieved: Iterable[Sequence],
    gold: Sequence[Sequence],
    ks: Sequence[int],
    first_hit: Callable[[Sequence, Sequence], int | None],
) -> dict[int, np.ndarray]:
    """{K: (N,)}: whether the rank of the first hit (from 0) lies below K; NaN where nothing is gold."""
    ranks = []
    for row, right in zip(retrieved, gold, strict=True):
        if len(row) < max(ks):
            raise UserError(
                f"recall@{max(ks)} needs {max(ks)} passages for each question, {len(row)} were retrieved: "
                "retrieve more, or ask for a smaller K"
            )
        hit = first_hit(row[: max(ks)], right) if len(right) else np.nan
        ranks.append(np.inf if hit is None else hit)
    first = np.array(ranks, dtype=np.float64)
    return {k: np.where(np.isnan(first), np.nan, (first < k).astype(np.float64)) for k in ks}
