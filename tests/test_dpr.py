"""Section 2.2: the bi-encoder's loss and batches, and the inverse cloze task that comes before them."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import PASSAGES, bert_tokenizer, tiny_passage_encoder, tiny_question_encoder
from torch.testing import assert_close

from rag.dpr import BiEncoder, DprData, contrastive_loss
from rag.encoders import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.passages import Passage
from rag.scratch.inverse_cloze import InverseCloze


@pytest.fixture
def encoders() -> BiEncoder:
    tokenizer = bert_tokenizer()
    question, passage = tiny_question_encoder(len(tokenizer)), tiny_passage_encoder(len(tokenizer))
    return BiEncoder((QuestionEncoder(question, tokenizer), PassageEncoder(passage, tokenizer)))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "passages.jsonl"
    records = [{"id": str(n), "title": title, "text": text} for n, (title, text) in enumerate(PASSAGES)]
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def questions(tmp_path, records):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def test_the_loss_by_hand():
    """Scores [[2, 1], [0, 3]]: −log e²/(e² + e¹) and −log e³/(e⁰ + e³)."""
    queries = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    loss, scores = contrastive_loss(
        queries, torch.eye(2), torch.tensor([0, 1]), torch.ones(2, 2, dtype=torch.bool)
    )
    assert_close(scores, queries)
    assert float(loss) == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 2)


def test_a_passage_that_is_right_for_another_question_is_no_negative():
    """Without the second passage, question 0 has nothing left to confuse its own with."""
    allowed = torch.tensor([[True, False], [True, True]])
    loss, scores = contrastive_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), allowed)
    assert scores[0, 1] == -torch.inf
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)) / 2)


def test_batches_of_questions(tmp_path, corpus, encoders):
    """Two questions share passage 0; each has its own hard negative."""
    path = questions(
        tmp_path,
        [
            {"question": "who", "answers": ["a"], "positive_ids": [0], "hard_negative_ids": [1]},
            {"question": "what", "answers": ["b"], "positive_ids": [0], "hard_negative_ids": [2]},
        ],
    )
    data = DprData(corpus, encoders, batch_size=2, questions=path)
    data.setup()
    batch = data.make_batch(0)
    assert batch.positive.tolist() == [0, 2]
    # Passage 0 stands at 0 and 2 and is right for both: each question keeps its own copy and both hard negatives.
    assert batch.allowed.tolist() == [[True, True, False, True], [False, True, True, True]]
    assert len(batch.passages["input_ids"]) == 4


def test_inverse_cloze_first_then_half_and_half(tmp_path, corpus, encoders):
    path = questions(tmp_path, [{"question": "who", "answers": ["a"], "positive_ids": [0]}])
    data = DprData(corpus, encoders, 4, path, InverseCloze(), inverse_cloze_steps=2)
    data.setup()
    asked = encoders.question_encoder.tokenize(["who"])["input_ids"][0].tolist()

    def share(step):
        ids = data.make_batch(step).questions["input_ids"].tolist()
        return sum(row[: len(asked)] == asked for row in ids)

    assert [share(step) for step in (0, 1, 2, 3)] == [0, 0, 2, 2]


def test_a_question_about_an_unknown_passage_is_refused(tmp_path, corpus, encoders):
    path = questions(tmp_path, [{"question": "who", "answers": ["a"], "positive_ids": [999], "id": "q7"}])
    with pytest.raises(UserError, match="question q7 names passage 999, which .* does not hold"):
        DprData(corpus, encoders, 2, path).setup()


def test_nothing_to_train_on_is_refused(corpus, encoders):
    with pytest.raises(UserError, match="nothing to train on"):
        DprData(corpus, encoders, 2).setup()


def test_inverse_cloze_makes_queries_of_the_passages_own_words():
    """Without noise and without dropping, a query is the title and one sentence, in their order but for the title."""
    passages = [Passage(str(n), "Ada Marlow", f"She baked bread{n}. She sold cakes{n}.") for n in range(4)]
    cloze = InverseCloze(keep_sentence=0.0, drop_words=0.0, noise_words=0)
    cloze.setup(passages)
    for query, row, passage in cloze.make(np.random.default_rng(0), 4):
        words = query.replace("Ada Marlow", "").split()
        first, second = ["She", "baked", f"bread{row}"], ["She", "sold", f"cakes{row}"]
        assert words in (first, second)
        # The sentence was taken out, the other one stayed.
        assert passage.text == (f"She sold cakes{row}." if words == first else f"She baked bread{row}.")
        assert passage.title == "Ada Marlow"


def test_inverse_cloze_batches_share_words_of_their_titles():
    titles = ["Ada Marlow", "Ada Finch", "Otto Finch", "Otto Marlow"] + [f"Lone{n}" for n in range(50)]
    passages = [Passage(str(n), title, "One thing. Another thing.") for n, title in enumerate(titles)]
    cloze = InverseCloze()
    cloze.setup(passages)
    rows = {row for seed in range(5) for _, row, _ in cloze.make(np.random.default_rng(seed), 2)}
    assert rows <= {0, 1, 2, 3}


def test_inverse_cloze_batches_hold_several_passages_of_a_title():
    """So that the name alone does not tell which of them a query was made from; none of many is left out for ever."""
    titles = ["Ada Marlow"] * 9 + ["Otto Marlow"]
    passages = [Passage(str(n), title, "One thing. Another thing.") for n, title in enumerate(titles)]
    cloze = InverseCloze()
    cloze.setup(passages)
    batches = [[row for _, row, _ in cloze.make(np.random.default_rng(seed), 6)] for seed in range(20)]
    assert all(len({row for row in batch if row < 9}) >= 3 for batch in batches)
    assert {row for batch in batches for row in batch} == set(range(10))
