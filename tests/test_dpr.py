"""Section 2.2: the bi-encoder's loss and batches, and the inverse cloze task that comes before them."""

import json
import math
import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import PASSAGES, bert_tokenizer, tiny_passage_encoder, tiny_question_encoder
from safetensors.torch import load_file, save_file
from sentence_folders import tiny_transformer, write_modules, written_out
from torch.testing import assert_close
from transformers import BertConfig, BertModel

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.encoders.opening import open_passage_encoder, open_question_encoder
from rag.errors import UserError
from rag.index.passage import Passage
from rag.index.reading import CorpusReading
from rag.parts import check_parts, save_parts
from rag.retrievers.scale import LearnedScale
from rag.scratch.inverse_cloze import InverseCloze
from rag.scratch.lexical_start import inverse_document_frequencies, lexical_encoders
from rag.tasks.dpr_json import open_dpr_json
from rag.tasks.example import Example
from rag.training.dpr import (
    BiEncoder,
    BiEncoderBatch,
    DprModule,
    bert_encoders,
    contrastive_loss,
    gather_passages,
    passages_allowed,
    ranks_of_gold,
    sentence_encoders,
)
from rag.training.dpr_data import DprData, _row, open_corpus
from rag.training.hard_negatives import MinedNegatives
from rag.training.optimization import Optimization


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
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.exp(-3))])


def test_a_passage_that_is_right_for_another_question_is_no_negative():
    """Without the second passage, question 0 has nothing left to confuse its own with."""
    allowed = torch.tensor([[True, False], [True, True]])
    loss, scores = contrastive_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), allowed)
    assert scores[0, 1] == -torch.inf
    assert loss.tolist() == pytest.approx([0.0, math.log(1 + math.exp(-1))])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_and_losses_are_float32_under_autocast(dtype):
    """Scores around 30 that differ by hundredths: in half most of them would be equal."""
    generator = torch.Generator().manual_seed(0)
    queries, passages = torch.randn(2, 40, 64, generator=generator)
    passages = passages * 0.01 + queries[:1]
    golds_and_allowed = torch.arange(40), torch.ones(40, 40, dtype=torch.bool)
    loss, scores = contrastive_loss(queries.requires_grad_(), passages, *golds_and_allowed)
    loss.sum().backward()
    expected, queries.grad = queries.grad, None
    ranks = ranks_of_gold(queries, passages, golds_and_allowed[0], golds_and_allowed[0][:, None])
    with torch.autocast("cpu", dtype=dtype):
        losses, found_scores = contrastive_loss(queries, passages, *golds_and_allowed)
        found_ranks = ranks_of_gold(queries, passages, golds_and_allowed[0], golds_and_allowed[0][:, None])
    losses.sum().backward()
    assert found_scores.dtype == torch.float32 and torch.equal(found_scores, scores)
    assert torch.equal(losses, loss) and torch.equal(queries.grad, expected)
    assert torch.equal(found_ranks, ranks)


def test_vectors_of_nan_have_the_last_rank_not_the_first():
    queries = torch.full((2, 3), torch.nan)
    ranks = ranks_of_gold(queries, torch.eye(3), torch.tensor([0, 1]), torch.tensor([[0], [1]]))
    assert ranks.tolist() == [2, 2]


def test_batches_of_questions(tmp_path, corpus, encoders):
    """Two questions share passage 0; each has its own hard negative."""
    path = questions(
        tmp_path,
        [
            {"question": "who", "answers": ["a"], "positive_ids": [0], "hard_negative_ids": [1]},
            {"question": "what", "answers": ["b"], "positive_ids": [0], "hard_negative_ids": [2]},
        ],
    )
    data = DprData(corpus, encoders, batch_size=2, questions=path, cache=tmp_path)
    data.setup()
    batch = data.make_batch(0)
    assert batch.positive.tolist() == [0, 2]
    # Passage 0 stands at 0 and 2 and is right for both: each question keeps its own copy and both hard negatives.
    assert passages_allowed(batch.rows, batch.right, batch.positive).tolist() == [
        [True, True, False, True],
        [False, True, True, True],
    ]
    assert len(batch.passages["input_ids"]) == 4


def test_inverse_cloze_first_then_half_and_half(tmp_path, corpus, encoders):
    path = questions(tmp_path, [{"question": "who", "answers": ["a"], "positive_ids": [0]}])
    data = DprData(corpus, encoders, 4, path, InverseCloze(), inverse_cloze_steps=2, cache=tmp_path)
    data.setup()
    asked = encoders.question_encoder.tokenize(["who"])["input_ids"][0].tolist()

    def share(step):
        ids = data.make_batch(step).questions["input_ids"].tolist()
        return sum(row[: len(asked)] == asked for row in ids)

    assert [share(step) for step in (0, 1, 2, 3)] == [0, 0, 2, 2]


def test_a_question_about_an_unknown_passage_is_refused(tmp_path, corpus, encoders):
    path = questions(tmp_path, [{"question": "who", "answers": ["a"], "positive_ids": [999], "id": "q7"}])
    with pytest.raises(UserError, match="question q7 names passage 999, which .* does not hold"):
        DprData(corpus, encoders, 2, path, cache=tmp_path).setup()


def test_questions_without_gold_passages_are_refused(tmp_path, corpus, encoders):
    path = questions(tmp_path, [{"question": "who", "answers": ["a"]}])
    with pytest.raises(UserError, match="holds no question with positive_ids"):
        DprData(corpus, encoders, 2, path, cache=tmp_path).setup()


def test_nothing_to_train_on_is_refused(tmp_path, corpus, encoders):
    with pytest.raises(UserError, match="nothing to train on"):
        DprData(corpus, encoders, 2, cache=tmp_path).setup()


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


# -- negatives of all ranks -----------------------------------------------------------------------


def rank_loss(model: BiEncoder, batch: BiEncoderBatch) -> torch.Tensor:
    """The sum over a rank's questions."""
    questions = model.question_encoder(**batch.questions)
    passages, rows, first_row = gather_passages(model.passage_encoder(**batch.passages), batch.rows)
    positive = batch.positive + first_row
    allowed = passages_allowed(rows, batch.right, positive)
    return contrastive_loss(questions, passages, positive, allowed)[0].sum()


def one_rank(rank: int, model: BiEncoder, batches: list[BiEncoderBatch], folder) -> None:
    """The summed loss and gradient of two ranks into a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    loss = rank_loss(model, batches[rank])
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients["loss"] = loss.detach()
    for value in gradients.values():
        dist.all_reduce(value)
    save_file(gradients, folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_two_ranks_have_the_gradient_of_one_with_the_whole_batch(tmp_path, corpus, encoders):
    """Four questions, two a rank; one rank has hard negatives and the other none, so that they hold 4 and 2 passages;
    passage 0 is right for a question of either rank."""
    records = [
        {"question": "who", "answers": ["a"], "positive_ids": [0], "hard_negative_ids": [1]},
        {"question": "what river", "answers": ["a"], "positive_ids": [2], "hard_negative_ids": [3]},
        {"question": "capital", "answers": ["a"], "positive_ids": [0, 4]},
        {"question": "the Seine", "answers": ["a"], "positive_ids": [5]},
    ]
    records[2]["positive_ids"] = [0]
    encoders.eval()

    def batch_of(chosen, name):
        folder = tmp_path / name
        folder.mkdir()
        data = DprData(corpus, encoders, len(chosen), questions(folder, chosen), cache=tmp_path)
        data.setup()
        data.order.take = lambda start, count: list(range(count))  # as written
        return data.make_batch(0)

    loss = rank_loss(encoders, batch_of(records, "all"))
    loss.backward()
    halves = [batch_of(records[:2], "first"), batch_of(records[2:], "second")]
    assert [len(half.rows) for half in halves] == [4, 2]
    whole = {name: p.grad.clone() for name, p in encoders.named_parameters() if p.grad is not None}
    encoders.zero_grad()
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=one_rank, args=(n, encoders, halves, tmp_path)) for n in (0, 1)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
        assert each.exitcode == 0
    for n in (0, 1):
        saved = load_file(tmp_path / f"rank{n}.safetensors")
        assert_close(saved.pop("loss"), loss.detach())
        assert saved.keys() == whole.keys()
        for name, gradient in whole.items():
            assert_close(saved[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


# -- validation -----------------------------------------------------------------------------------


def test_the_rank_of_the_gold_passage_by_hand():
    """Scores of question 0: 3, 5, 4, 1: gold 0 has two ahead, one of which (2) is right for it too. Question 1: 0
    ahead; a passage with the same score is not ahead."""
    passages = torch.eye(4)
    asked = torch.tensor([[3.0, 5.0, 4.0, 1.0], [2.0, 0.0, 7.0, 7.0]])
    ranks = ranks_of_gold(asked, passages, torch.tensor([0, 3]), torch.tensor([[0, 2], [3, -1]]))
    assert ranks.tolist() == [1, 0]


def test_dev_questions_are_ranked_among_all_golds_and_negatives(tmp_path, corpus, encoders):
    path = questions(
        tmp_path,
        [
            {"question": "who", "answers": ["a"], "positive_ids": [3, 1], "hard_negative_ids": [5, 6]},
            {"question": "what", "answers": ["b"], "positive_ids": [1], "hard_negative_ids": [3]},
        ],
    )
    data = DprData(corpus, encoders, 2, path, dev=path, dev_negatives=1, cache=tmp_path)
    data.setup()
    assert data.dev is not None
    # the first positive of each and one negative; passage 1 is right for question 0 too, and there as a gold
    assert data.dev.rows == [3, 5, 1]
    assert data.dev.gold.tolist() == [0, 2]
    assert data.dev.right.tolist() == [[0, 2], [2, -1]]


# -- DPR's own files, mined negatives --------------------------------------------------------------


def context(number: int, **more) -> dict:
    title, text = PASSAGES[number]
    return {"title": title, "text": text, "score": 1.0, "passage_id": str(number), **more}


def dpr_file(tmp_path, records):
    path = tmp_path / "biencoder-tiny-train.json"
    path.write_text(json.dumps(records, indent=1))
    return path


def test_dprs_training_file_brings_its_passages(tmp_path, encoders):
    """The second question has no hard negatives, so that one of the others stands in; the third no positive."""
    record = {"dataset": "nq_train", "question": "capital of France", "answers": ["Paris"]}
    path = dpr_file(
        tmp_path,
        [
            record
            | {
                "positive_ctxs": [context(0)],
                "negative_ctxs": [context(4)],
                "hard_negative_ctxs": [context(1), context(2)],
            },
            record
            | {
                "question": "the river",
                "positive_ctxs": [context(5)],
                "negative_ctxs": [context(0)],
                "hard_negative_ctxs": [],
            },
            record | {"positive_ctxs": [], "negative_ctxs": [], "hard_negative_ctxs": []},
        ],
    )
    store, asked = open_dpr_json(path, tmp_path / "cache")
    assert [(p.title, p.text) for p in store] == [PASSAGES[n] for n in (0, 1, 2, 4, 5)]
    rows_of = [(one.question, one.positives.tolist(), one.hard.tolist(), one.other.tolist()) for one in asked]
    assert rows_of == [("capital of France", [0], [1, 2], [3]), ("the river", [4], [], [0])]

    data = DprData(None, encoders, 2, path, hard_negatives=2, cache=tmp_path / "cache")
    data.setup()
    data.order.take = lambda start, count: list(range(count))
    batch = data.make_batch(0)
    assert batch.positive.tolist() == [0, 3]
    assert sorted(batch.rows.tolist()[:3]) == [0, 1, 2] and batch.rows.tolist()[3:] == [4, 0]
    # the second question's stand-in is the first one's gold passage
    assert passages_allowed(batch.rows, batch.right, batch.positive)[0].tolist() == [True] * 4 + [False]

    before = (store.folder / "store.json").stat().st_mtime_ns
    again, _ = open_dpr_json(path, tmp_path / "cache")
    assert (again.folder / "store.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"positive_ctxs": None}, "positive_ctxs is null, a list of passages is expected"),
        (
            {"positive_ctxs": ["text"]},
            "passage 1 of positive_ctxs is a string, an object with title and text",
        ),
        ({"positive_ctxs": [{"title": "a"}]}, "passage 1 of positive_ctxs: no key 'text', found title"),
        (
            {"hard_negative_ctxs": [context(0), context(1, text=" ")]},
            "passage 2 of hard_negative_ctxs: the text is",
        ),
        ({"question": 7}, "the question is a number, a string is expected"),
        ({"positive_ctxs": []}, "holds no question with a positive passage"),
    ],
)
def test_what_is_wrong_in_dprs_file_is_told_and_nothing_left(tmp_path, change, sentence):
    record = {"question": "who", "answers": ["a"], "positive_ctxs": [context(0)], "hard_negative_ctxs": []}
    path = dpr_file(tmp_path, [record | change])
    with pytest.raises(UserError, match=sentence):
        open_dpr_json(path, tmp_path / "cache")
    assert not [file for file in (tmp_path / "cache").rglob("*") if not file.name.endswith(".lock")]


def test_a_file_of_another_kind_is_told_by_its_keys(tmp_path):
    path = dpr_file(tmp_path, [{"question": "who", "answers": ["a"], "positive_ids": [1]}])
    with pytest.raises(
        UserError, match="line 2: no key 'positive_ctxs', found question, answers, positive_ids"
    ):
        open_dpr_json(path, tmp_path / "cache")


def test_mined_negatives_are_found_by_bm25_and_hold_no_answer(tmp_path, corpus, encoders):
    """ "river" stands in Paris, Berlin, Seine and Tiber: the gold passage and the one with the answer are left out."""
    asked = [Example("which river is in Italy", ("France",), positive_ids=("6",)), Example("xyzzy", ("no",))]
    store = open_corpus(corpus, tmp_path)
    mined = MinedNegatives(depth=7, keep=3)
    rows = mined.rows(store, asked, tmp_path)
    assert sorted(rows[0].tolist()) == [-1, 1, 2]  # Berlin by its river, Rome by Italy
    assert rows[1].tolist() == [-1, -1, -1]
    (file,) = tmp_path.glob("hard_negatives-*.npy")
    before = file.stat().st_mtime_ns
    assert (mined.rows(store, asked, tmp_path) == rows).all() and file.stat().st_mtime_ns == before
    MinedNegatives(depth=7, keep=2).rows(store, asked, tmp_path)
    assert len(list(tmp_path.glob("hard_negatives-*.npy"))) == 2

    path = questions(
        tmp_path, [{"question": "which river is in Italy", "answers": ["France"], "positive_ids": [6]}]
    )
    data = DprData(corpus, encoders, 1, path, hard_negatives=2, mined=mined, cache=tmp_path)
    data.setup()
    assert sorted(data.make_batch(0).rows.tolist()) == [1, 2, 6]


# -- starting weights -----------------------------------------------------------------------------


def test_both_encoders_start_from_one_bert(tmp_path):
    """A BERT as the hub has it: the vector is its state of [CLS]."""
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    bert = BertModel(config).eval()
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoders = bert_encoders(tmp_path, max_length=32)
    tokens = encoders[0].tokenize(["what is the capital of France?", "Rome"])
    expected = bert(**tokens).last_hidden_state[:, 0]
    for encoder in encoders:
        assert_close(encoder.eval()(**tokens), expected)
        assert encoder.max_length == 32
    save_parts(BiEncoder(encoders).trained_parts(), tmp_path / "out")
    again = QuestionEncoder.from_pretrained(tmp_path / "out" / "question_encoder").eval()
    assert_close(again(**tokens), expected)


def test_no_bert_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no BERT with its tokenizer"):
        bert_encoders(tmp_path)


def test_inverse_document_frequencies_by_hand():
    """Of two passages both hold "the" and one "sun": log(1 + ½/2½) and log(1 + 1½/1½)."""
    tokenizer = bert_tokenizer(["the sun", "the the moon"])
    passages = [Passage("1", "the", "sun"), Passage("2", "the", "the moon")]
    idf = inverse_document_frequencies(tokenizer, passages)
    the, sun = tokenizer.convert_tokens_to_ids(["the", "sun"])
    assert idf[the] == pytest.approx(math.log(1.2)) and idf[sun] == pytest.approx(math.log(2))


def test_the_lexical_start_compares_words_by_their_rarity(tmp_path, corpus):
    """The cosine of two texts is that of their bags of words weighted by idf, up to the projection's noise."""
    tokenizer = bert_tokenizer()
    question, passage = lexical_encoders(tokenizer, str(corpus), width=1024, heads=4, positions=64)
    assert question.model.get_input_embeddings().weight is passage.model.get_input_embeddings().weight
    passages = [Passage(str(n), title, text) for n, (title, text) in enumerate(PASSAGES)]
    idf = inverse_document_frequencies(tokenizer, passages)

    def bag(ids):
        weights = np.zeros(len(tokenizer))
        for token in ids:
            if token not in tokenizer.all_special_ids:
                weights[token] += idf[token]
        return weights / np.linalg.norm(weights)

    asked = ["the river Tiber", "Ernest Hemingway wrote"]
    tokens = passage.tokenize(passages)
    bags = np.array([bag(row) for row in tokens["input_ids"].tolist()])
    expected = np.array([bag(tokenizer(one)["input_ids"]) for one in asked]) @ bags.T
    with torch.no_grad():
        q, d = question.eval()(**question.tokenize(asked)), passage.eval()(**tokens)
    cosines = (q / q.norm(dim=1, keepdim=True)) @ (d / d.norm(dim=1, keepdim=True)).T
    assert np.abs(cosines.numpy() - expected).max() < 0.12  # 1/√1024 is 0.03
    assert q.norm(dim=1).tolist() == pytest.approx([math.sqrt(1024 * 0.05)] * 2, rel=0.01)


def test_a_gold_passage_that_was_split_is_the_piece_with_the_answer(tmp_path):
    corpus = tmp_path / "p.tsv"
    corpus.write_text("id\ttext\n7\tone two three four five six\n8\tone\n")
    store = open_corpus(corpus, tmp_path / "cache", reading=CorpusReading(split="words", size=2))
    example = Example("?", ("four",), positive_ids=("7",))
    assert store.ids([_row(store, "7", example, True, corpus)]) == ["7#2"]
    assert store.ids([_row(store, "7", example, False, corpus)]) == ["7#1"]
    assert store.ids([_row(store, "8", example, True, corpus)]) == ["8"]
    with pytest.raises(UserError, match="names passage 9, which"):
        _row(store, "9", example, True, corpus)


# -- sentence-transformers' encoders --------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_both_encoders_start_from_one_sentence_encoder(tmp_path, shared):
    folder = write_modules(tiny_transformer(tmp_path / "start"), prompts={"query": "who "})
    question, passage = sentence_encoders(folder, shared=shared, dropout=0.0)
    assert (question.model is passage.model) == shared and question.prompt == "who " and passage.prompt == ""
    read = [Passage("1", *PASSAGES[0])]
    assert_close(
        question(**question.embedder.tokenize(["paris"])[0]),
        passage(**passage.embedder.tokenize(["paris"])[0]),
    )
    model = BiEncoder((question, passage))
    assert model.scale == 20.0 and BiEncoder((question, passage), scale=3.0).scale == 3.0
    check_parts(model, model.trained_parts())
    with torch.no_grad():
        next(question.parameters()).add_(0.1)
    save_parts(model.trained_parts(), tmp_path / "out")
    again = open_question_encoder(tmp_path / "out" / "question_encoder")
    made_by = open_passage_encoder(tmp_path / "out" / "passage_encoder")
    assert again.partner == made_by.fingerprint() == passage.fingerprint()
    assert (again.passage_fingerprint() == made_by.fingerprint()) == shared
    assert_close(torch.from_numpy(made_by.eval().encode(read)), torch.from_numpy(passage.eval().encode(read)))


@pytest.mark.parametrize("learned", [False, True])
def test_a_step_over_scaled_cosines(tmp_path, learned):
    """−log exp(s·cos⁺) / Σ exp(s·cos), from vectors written out; a learned s gets its gradient."""
    folder = write_modules(tiny_transformer(tmp_path))
    scale = LearnedScale(4.0) if learned else 4.0
    model = BiEncoder(sentence_encoders(folder, dropout=0.0), scale=scale).train()
    module = DprModule(model, Optimization(lr=0.1))
    module.add_up = lambda loss, count, **sums: loss / count  # what it hands on to be added up
    asked, rows = ["paris", "which river runs through Rome"], [0, 2, 5]
    batch = BiEncoderBatch(
        model.question_encoder.tokenize(asked),
        model.passage_encoder.tokenize([Passage(str(row), *PASSAGES[row]) for row in rows]),
        torch.tensor(rows),
        torch.tensor([[0], [2]]),
        torch.tensor([0, 1]),
    )
    loss = module.training_step(batch, 0)
    loss.backward()
    questions = written_out(folder, asked, "mean", 32)
    passages = written_out(folder, [" ".join(PASSAGES[row]) for row in rows], "mean", 32)
    logits = 4 * questions @ passages.T
    expected = -logits.log_softmax(dim=1)[[0, 1], [0, 1]].mean()
    assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-5)
    assert all(weight.grad is not None for weight in model.parameters())
    if learned:  # d loss / d log s
        p = logits.softmax(dim=1)
        by_hand = ((p * logits).sum(dim=1) - logits[[0, 1], [0, 1]]).mean()
        assert_close(model.scale.log.grad, by_hand, rtol=1e-4, atol=1e-5)
