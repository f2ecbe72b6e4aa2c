"""The measures against worked examples and against implementations that share no code with them."""

import gzip
import json
import lzma
import math
import sys
import unicodedata
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import regex
from sacrebleu.metrics.bleu import BLEU
from sklearn.metrics import f1_score

from rag.errors import UserError
from rag.metrics.bootstrap import bootstrap, mean_with_interval
from rag.metrics.classification import label_accuracy
from rag.metrics.generation import bleu_1, distinct_trigrams, rouge_l, trigram_diversity
from rag.metrics.qa import exact_match, normalize, regex_match, token_f1
from rag.metrics.qbleu import SQUAD, Weights, answerability, q_bleu, question_parts
from rag.metrics.retrieval import (
    answer_recall_at,
    has_answer,
    plain_title,
    recall_at,
    title_hits_at,
    tokenize,
    where_not_retrieved,
)
from rag.tasks.natural_questions import NaturalQuestions
from rag.tasks.qa import QuestionAnswering
from rag.tasks.trivia_qa import TriviaQA
from rag.tasks.web_questions import WebQuestions
from rag.words import answer_tokens

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def real(name: str) -> Path:
    """A file of real data beside the repository; the test is skipped where there is none."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real data: {path} is not there")
    return path


def real_records(name: str, limit: int | None = None) -> list[dict]:
    with gzip.open(real(name), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, limit)]


def real_passages(name: str, limit: int | None = None) -> list[str]:
    with lzma.open(real(name), "rt", encoding="utf-8") as file:
        rows = islice(file, 1, None if limit is None else limit + 1)
        return [row.split("\t")[1].strip('"').replace('""', '"') for row in rows]


# Answers


def test_nothing_is_no_answer_even_to_what_normalisation_leaves_nothing_of():
    """By the official script an empty prediction answers "The" and "%"."""
    predictions = ["", " ", "the", "%", ""]
    answers = [["The"], ["%"], ["The"], ["%"], [""]]
    assert exact_match(predictions, answers).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("a man, a plan, an answer", "man plan answer"),
        ("U.S.A.", "usa"),
        ("Theatre", "theatre"),
        ("a-ha", "aha"),  # punctuation goes first, so that no article is left
        ("Beyoncé\tKnowles", "beyoncé knowles"),
        ("the", ""),
        ("«the» Löwe", "« » löwe"),  # only ASCII punctuation goes
    ],
)
def test_normalisation_by_hand(text, expected):
    assert normalize(text) == expected


def test_exact_match_takes_any_answer():
    scores = exact_match(["the Moon", "Mars", ""], [["Sun", "moon."], ["Venus"], ["The"]])
    assert scores.tolist() == [1.0, 0.0, 0.0]  # "" is no answer


def test_f1_by_hand():
    # prediction 3 words, answer 2, shared 2: precision 2/3, recall 1, F1 4/5; the worse answer does not count
    scores = token_f1(["Barack Hussein Obama", "Obama", "x"], [["Obama Barack", "Obama"], ["Biden"], ["x x"]])
    assert scores == pytest.approx([0.8, 0.0, 2 / 3])


def test_predictions_and_answers_must_be_as_many():
    with pytest.raises(ValueError):
        exact_match(["a"], [])


def independent_words(text: str) -> list[str]:
    """SQuAD's normalisation again, character by character and word by word."""
    kept = ""
    for character in text.lower():
        if not (
            character.isascii() and not character.isalnum() and character.isprintable() and character != " "
        ):
            kept += character
    words, word = [], ""
    for character in kept + " ":
        if character.isspace():
            words.append(word)
            word = ""
        else:
            word += character
    # An article counts as one where non-word characters stand around it, as in "the«»".
    return regex.sub(
        r"(?<![\p{L}\p{N}_])(?:an?|the)(?![\p{L}\p{N}_])", " ", " ".join(filter(None, words))
    ).split()


def independent_f1(prediction: str, answer: str) -> float:
    predicted, expected = independent_words(prediction), independent_words(answer)
    left, shared = list(expected), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            shared += 1
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0


def perturbed(answer: str, other: str, how: int) -> str:
    """A prediction that is right, nearly right or wrong in one of eight ways."""
    words = answer.split()
    return [
        answer,
        answer.upper() + ".",
        "The " + answer,
        " ".join(reversed(words)),
        " ".join(words[1:]),
        f"{answer} {other}",
        other,
        "",
    ][how]


def test_em_and_f1_agree_with_another_implementation_on_real_answers():
    records = real_records("trivia_open/dev.jsonl.gz", 3000) + real_records("nq_open/dev.jsonl.gz", 2000)
    answers = [record["answer"] for record in records]
    firsts = [right[0] for right in answers]
    predictions = [perturbed(first, firsts[number - 1], number % 8) for number, first in enumerate(firsts)]
    em, f1 = exact_match(predictions, answers), token_f1(predictions, answers)
    expected_em = [
        float(any(independent_words(one) == independent_words(a) for a in right) and bool(one.strip()))
        for one, right in zip(predictions, answers, strict=True)
    ]
    expected_f1 = [
        max(independent_f1(one, a) for a in right) for one, right in zip(predictions, answers, strict=True)
    ]
    assert em.tolist() == expected_em
    np.testing.assert_allclose(f1, expected_f1, atol=1e-12)
    assert 0.3 < em.mean() < f1.mean() < 0.9  # the predictions are neither all right nor all wrong


def test_f1_agrees_with_sklearn_on_real_answers():
    answers = [record["answer"][0] for record in real_records("nq_open/dev.jsonl.gz", 201)]
    for first, second in zip(answers, answers[1:], strict=False):
        prediction = f"{first} {second.split()[0]}"
        counted = []  # the n-th occurrence of a word is a thing to be found of its own
        for text in (prediction, first):
            words = normalize(text).split()
            counted.append({(word, words[:position].count(word)) for position, word in enumerate(words)})
        everything = sorted(counted[0] | counted[1])
        predicted, expected = ([one in words for one in everything] for words in counted)
        assert token_f1([prediction], [[first]])[0] == pytest.approx(f1_score(expected, predicted))


def test_regular_expressions_match_from_the_beginning():
    patterns = [r"New\s?York|Long Island"]
    predictions = ["new york", "NewYork City", "in New York", "Boston"]
    assert regex_match(predictions, [patterns] * 4).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_pattern_that_does_not_compile_is_told():
    with pytest.raises(UserError, match=r"^the answer 'a\(' is not a regular expression \(.*\)$"):
        regex_match(["a"], [["a("]])


# Retrieval


def test_recall_by_hand():
    scores = recall_at([[7, 3, 9], ["4", "5", "6"], [1, 2, -1]], [["9", "1"], [4], []], ks=(1, 2, 3))
    assert scores[1].tolist()[:2] == [0.0, 1.0]
    assert scores[2].tolist()[:2] == [0.0, 1.0]
    assert scores[3].tolist()[:2] == [1.0, 1.0]
    assert all(math.isnan(scores[k][2]) for k in (1, 2, 3))  # no gold passage is known


def test_recall_of_an_array_and_of_missing_passages():
    scores = recall_at(np.array([[5, -1], [-1, -1]]), [[5], [1]], ks=(2,))
    assert scores[2].tolist() == [1.0, 0.0]


def test_too_few_passages_for_a_recall_are_told():
    expected = (
        "recall@5 needs 5 passages for each question, 2 were retrieved: retrieve more, or ask for a smaller K"
    )
    with pytest.raises(UserError) as caught:
        recall_at([[1, 2]], [[1]], ks=(1, 5))
    assert str(caught.value) == expected


def test_dpr_tokens_by_hand():
    assert tokenize("Beyoncé's 3.5-year\u00a0plan") == [
        "beyonce\u0301",
        "'",
        "s",
        "3",
        ".",
        "5",
        "-",
        "year",
        "plan",
    ]


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("He was born in New  York, in 1950.", "new york", True),
        ("He was born in Newark.", "new", False),  # tokens, not substrings
        ("the U.S. Army", "US", False),
        ("the U.S. Army", "u.s.", True),
        ("Beyonc\u00e9 sang", "beyonce\u0301", True),  # composed or not is the same
        ("Beyonce sang", "Beyonc\u00e9", False),
        ("anything", " ", False),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς", True),
    ],
)
def test_answers_in_passages_by_hand(text, answer, found):
    assert has_answer(text, [answer]) is found
    assert has_answer(text, ["not there at all", answer]) is found


@pytest.mark.parametrize(
    ("text", "answer", "found", "dprs"),
    [
        ("雨衣在西安出售。", "西安", True, False),  # DPR makes one token of the sentence
        ("雨衣在安西出售。", "西安", False, False),
        ("价格是十四元，保修1年", "十四元", True, False),
        ("店は九時に開きます。", "九時", True, False),
        ("ร้านอยู่ในเชียงใหม่", "เชียงใหม่", True, False),
        ("ร้านอยู่ในเชียงใหม่", "เชียงใหม", False, False),  # half of a character
        ("दुकान दिल्ली में है", "दिल्ली", True, True),
        ("दुकान दिल्ली में है", "दिल", False, False),  # half of a word
        ("He was born in Newark.", "new", False, False),
    ],
)
def test_answers_in_scripts_without_spaces(text, answer, found, dprs):
    assert has_answer(text, [answer]) is found
    assert has_answer(text, [answer], tokens=tokenize) is dprs


def test_the_papers_tasks_keep_dprs_tokens():
    assert QuestionAnswering.tokens is answer_tokens
    assert {task.tokens for task in (NaturalQuestions, TriviaQA, WebQuestions)} == {tokenize}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("spelling", ["NFC", "NFD"])
def test_regular_expressions_with_accents(form, spelling):
    text = unicodedata.normalize(form, "Ele nasceu em São Paulo.")
    for pattern in ("São Paulo", "S[áã]o Paulo", "Sã+o", "S\\u00e3o Paulo"):
        pattern = unicodedata.normalize(spelling, pattern)
        assert has_answer(text, [pattern], regular=True)
        assert regex_match([text], [[f".*{pattern}"]]).tolist() == [1.0]
    assert has_answer(text, ["Sao Paulo"], regular=True) is False
    assert has_answer(unicodedata.normalize(form, "Beyoncé sang"), ["Beyonce"], regular=True)  # as in DPR


def test_answers_that_are_regular_expressions():
    assert has_answer("It opened in Sept 1990", ["Sept?(ember)?|Feb(ruary)?"], regular=True)
    assert not has_answer("It opened in May", ["Sept?(ember)?|Feb(ruary)?"], regular=True)


def test_answer_recall_by_hand():
    texts = [["nothing", "the moon"], ["a sun", "b"], ["c", "d"]]
    scores = answer_recall_at(texts, [["Moon"], ["star", "sun"], ["moon"]], ks=(1, 2))
    assert scores[1].tolist() == [0.0, 1.0, 0.0]
    assert scores[2].tolist() == [1.0, 1.0, 0.0]


def test_the_quick_look_for_a_token_misses_no_character():
    """has_answer looks for a folded token in the folded text first: that must not lose a token."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if character.isalpha():
            decomposed = unicodedata.normalize("NFD", character)
            assert decomposed.lower().casefold() == decomposed.casefold()


def independent_has_answer(text: str, answers: list[str]) -> bool:
    """DPR's token match again: slide each answer's tokens along the text's."""

    def words(string: str) -> list[str]:
        all_words, run = [], ""
        for character in unicodedata.normalize("NFD", string):
            category = unicodedata.category(character)[0]
            if category in "LNM":
                run += character
                continue
            if run:
                all_words.append(run.lower())
            run = ""
            if category not in "ZC":
                all_words.append(character.lower())
        return all_words + ([run.lower()] if run else [])

    tokens = words(text)
    for answer in answers:
        wanted = words(answer)
        if wanted and any(
            tokens[start : start + len(wanted)] == wanted for start in range(len(tokens) - len(wanted) + 1)
        ):
            return True
    return False


def test_answer_match_agrees_with_another_implementation_on_real_passages():
    passages = real_passages("squad_open/passages.tsv.xz", 1500)
    records = real_records("squad_open/dev.jsonl.gz", 400) + real_records("trivia_open/dev.jsonl.gz", 400)
    answers = [record.get("answers") or record["answer"] for record in records]
    hits = 0
    for number, right in enumerate(answers):
        text = passages[number % len(passages)]
        gold = (records[number].get("positive_ids") or [0])[0]
        for one in (text, passages[gold - 1] if 0 < gold <= len(passages) else text):
            assert has_answer(one, right) is independent_has_answer(one, right), (right, one)
            hits += has_answer(one, right)
    assert hits > 300  # not only misses were compared


def test_scores_where_nothing_was_retrieved():
    scores = where_not_retrieved(np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0, math.nan]))
    assert mean_with_interval(scores).summary()["value"] == 0.5
    assert mean_with_interval(scores).count == 2


def test_title_hits():
    assert plain_title("Savages_-LRB-2012_film-RRB-") == "Savages (2012 film)"
    assert plain_title("Dune-COLON-_Part_Two") == "Dune: Part Two"
    scores = title_hits_at(
        [["Oliver Stone", "Savages (2012 film)"], ["x", "y"], ["x", "y"]],
        [["Savages_-LRB-2012_film-RRB-"], ["z"], []],
        ks=(1, 2),
    )
    assert scores[1].tolist()[:2] == [0.0, 0.0]
    assert scores[2].tolist()[:2] == [1.0, 0.0]
    assert math.isnan(scores[1][2])  # not enough information: nothing is gold


# Generated text


def test_bleu_1_by_hand():
    # 3 of 4 words match; the reference has 5 words: brevity penalty exp(1 − 5/4)
    score = bleu_1(["the cat sat here"], [["the cat sat down there"]])
    assert score.value == pytest.approx(0.75 * math.exp(-0.25))


def test_bleu_1_is_sacrebleus_corpus_score_on_real_clues():
    clues = [record["clue"] for record in real_records("jeopardy/dev.jsonl.gz", 300)]
    predictions = [
        " ".join(clue.split()[number % 3 :]) + " " + clues[number - 1].split()[0]
        for number, clue in enumerate(clues)
    ]
    expected = BLEU(max_ngram_order=1, lowercase=True).corpus_score(predictions, [clues]).score / 100
    score = bleu_1(predictions, [[clue] for clue in clues])
    assert score.value == pytest.approx(expected, abs=1e-12)
    assert score.low < score.value < score.high
    assert score.high - score.low < 0.05
    assert score.per_example.shape == (300,)


def test_bleu_1_of_nothing():
    assert bleu_1([""], [["a b"]]).value == 0.0
    assert math.isnan(bleu_1([], []).value)


def independent_rouge_l(prediction: str, reference: str) -> float:
    """The longest common subsequence by plain recursion over runs of ASCII letters and digits."""
    one, other = ([*regex.findall("[a-z0-9]+", text.lower())] for text in (prediction, reference))
    length = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, word in enumerate(one):
        for j, right in enumerate(other):
            length[i + 1, j + 1] = (
                length[i, j] + 1 if word == right else max(length[i, j + 1], length[i + 1, j])
            )
    return 2 * length[-1, -1] / (len(one) + len(other)) if one and other else 0.0


def test_rouge_l_agrees_with_another_implementation():
    clues = [record["clue"] for record in real_records("jeopardy/dev.jsonl.gz", 101)]
    pairs = list(zip(clues, clues[1:], strict=False))
    score = rouge_l([f"{one} {two}" for one, two in pairs], [[one] for one, _ in pairs])
    expected = [independent_rouge_l(f"{one} {two}", one) for one, two in pairs]
    np.testing.assert_allclose(score.per_example, expected)


def test_rouge_l_takes_the_best_reference():
    # "the cat" in "the cat sat": precision 1, recall 2/3
    assert rouge_l(["the cat"], [["a dog", "the cat sat"]]).value == pytest.approx(0.8)


def test_distinct_trigrams_by_hand():
    ratio = trigram_diversity(["a b c d", "a b c", "x y"])  # abc, bcd, abc
    assert ratio.value == distinct_trigrams(["a b c d", "a b c", "x y"]) == pytest.approx(2 / 3)
    # without the first abc, without the second abc and bcd, without the third all three: 1/1, 2/2, 2/3
    spread = np.array([1, 1, 2 / 3])
    error = math.sqrt(2 / 3 * ((spread - spread.mean()) ** 2).sum())
    assert (ratio.low, ratio.high) == (pytest.approx(2 / 3 - 1.96 * error), 1.0)
    assert math.isnan(distinct_trigrams(["a b"]))


# Q-BLEU


def test_q_bleu_is_the_authors_worked_check():
    weights = Weights(relevant=0.1, entities=0.6, type=0.2, delta=0.7)
    prediction, reference = "Is this a great question?", "Is this a good question?"
    assert q_bleu([prediction], [reference], n=3, weights=weights).value == pytest.approx(0.678, abs=5e-4)
    only_bleu = Weights(relevant=0.1, entities=0.6, type=0.2, delta=0.0)
    assert q_bleu([prediction], [reference], n=3, weights=only_bleu).value == pytest.approx(0.511, abs=5e-4)
    only_rouge = rouge_l([prediction], [[reference]]).value
    assert only_rouge == pytest.approx(0.8)
    assert 0.7 * answerability(prediction, reference, weights) + 0.3 * only_rouge == pytest.approx(0.765)


def test_the_parts_of_a_question():
    parts = question_parts("Which year did Barack Obama leave the White House ?")
    assert parts == ("leave ?", "Barack Obama White House", "Which year", "did the")


def test_q_bleu_with_the_squad_weights_by_hand():
    # relevant: "river" = "river"; entities: Rome = Rome; type: Which; stop words: "in" = "in"
    prediction, reference = "Which river flows in Rome", "Which river runs in Rome"
    # parts of the prediction: type "Which river", entity "Rome", stop "in", relevant "flows" against "runs"
    expected_parts = SQUAD.entities * 1 + SQUAD.type * 1 + SQUAD.stop * 1 + SQUAD.relevant * 0
    assert SQUAD.stop == pytest.approx(0.03)
    assert answerability(prediction, reference) == pytest.approx(expected_parts)
    expected = 0.66 * expected_parts + 0.34 * 4 / 5
    assert q_bleu([prediction], [reference]).value == pytest.approx(expected)


def test_q_bleu_weighs_both_directions_with_their_brevity_penalties():
    # "Paris" against "Paris Texas", both entities: one way 1 · exp(1 − 2/1), the other way 1/2
    weights = Weights(relevant=0.0, entities=1.0, type=0.0, delta=1.0)
    one, other = math.exp(-1), 0.5
    assert q_bleu(["Paris"], ["Paris Texas"], weights=weights).value == pytest.approx(
        2 * one * other / (one + other)
    )


def test_q_bleu_of_nothing_and_of_itself():
    assert q_bleu(["", "x"], ["Who is it?", ""]).value == 0.0
    clues = [record["clue"] for record in real_records("jeopardy/dev.jsonl.gz", 300)]
    score = q_bleu(clues, clues)
    # A question agrees with itself except where it lacks a part, and most clues have no question word.
    assert (score.per_example <= 1).all()
    assert 0.7 < score.value < 0.9


# Labels and intervals


def test_label_accuracy():
    scores = label_accuracy(["SUPPORTS", "REFUTES", "supports"], ["SUPPORTS", "SUPPORTS", "SUPPORTS"])
    assert scores.tolist() == [1.0, 0.0, 0.0]


def test_the_interval_is_near_the_normal_one():
    scores = np.random.default_rng(5).random(2000) < 0.3
    metric = mean_with_interval(scores)
    spread = 1.96 * scores.std() / math.sqrt(2000)
    assert metric.value == scores.mean()
    assert metric.low == pytest.approx(scores.mean() - spread, abs=spread / 8)
    assert metric.high == pytest.approx(scores.mean() + spread, abs=spread / 8)
    assert metric.summary() == {"value": metric.value, "low": metric.low, "high": metric.high, "count": 2000}


def test_the_interval_is_the_same_each_time_and_independent_of_how_many_are_drawn_at_once(monkeypatch):
    scores = np.random.default_rng(6).random(300)
    first = bootstrap(scores)
    assert first == bootstrap(scores)
    monkeypatch.setattr("rag.metrics.bootstrap.DRAWS_AT_ONCE", 1000)
    assert bootstrap(scores) == first


def test_equal_scores_have_no_spread_and_unjudged_examples_do_not_count():
    metric = mean_with_interval([1.0, math.nan, 1.0])
    assert (metric.value, metric.low, metric.high, metric.count) == (1.0, 1.0, 1.0, 2)
    assert math.isnan(metric.per_example[1])
    nothing = mean_with_interval([math.nan])
    assert nothing.count == 0 and math.isnan(nothing.value)


def test_the_bootstrap_of_a_ratio():
    # each example brings (1, 2): every resampled ratio is one half
    assert bootstrap([[1, 2]] * 10, lambda means: means[:, 0] / means[:, 1]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("statistics", [[], [1.0, math.nan]])
def test_the_bootstrap_needs_numbers(statistics):
    with pytest.raises(ValueError, match="at least one example"):
        bootstrap(statistics)
