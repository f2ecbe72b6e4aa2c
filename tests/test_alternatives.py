"""What every passage proposes, with its exact p(y|x), and which answers rival one another."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from reader_folders import tiny_reader, write_notes
from sentence_folders import tiny_transformer, write_modules

from rag.ask import open_documents
from rag.ask.printed import several
from rag.ask.reply_html import answer_html
from rag.ask.session import Reply, Rival, Source
from rag.decoding.alternatives import Alternative, answers_and_candidates, candidates, merged, rivals
from rag.decoding.answers import Answer
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.model import RagSequence, RagToken

NAMESAKES = {
    "painter.md": "# John Smith, painter\n\nJohn Smith was a painter. John Smith was born in Leeds in 1820.\n",
    "sailor.md": "# John Smith, sailor\n\nJohn Smith was a sailor. John Smith was born in Dover in 1790.\n",
    "leeds.md": "# Leeds\n\nLeeds is a city with many bridges and a market on every street.\n",
}
ASKED = "Where was John Smith born?"


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alternatives")
    encoder = write_modules(tiny_transformer(folder / "encoder"), max_length=40)
    notes = write_notes(folder / "notes")
    given = (f"passage_encoder={encoder}", "n_docs=3", "retriever.weight=2")
    return open_documents(notes, tiny_reader(folder / "reader"), *given)


QUESTIONS = ["who was the engineer of the lighthouse", "which animal eats fish"]
DECODING = Decoding(max_new_tokens=4, min_new_tokens=1, num_beams=2)


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
def test_each_candidate_has_its_exact_probability(documents, kind):
    """Against `forward` of the model with the same tokens as targets, passage by passage."""
    one = documents.session.model
    model = kind(one.retriever, one.generator, 3).eval()
    with torch.inference_mode():
        batch = model.prepare(QUESTIONS)
        contexts = model.read(batch, 3)
        found = candidates(model, contexts, DECODING)
        for number, own in enumerate(found):
            assert len(own) >= 2 and [a.logprob for a in own] == sorted(
                (a.logprob for a in own), reverse=True
            )
            assert len({a.tokens for a in own}) == len(own)
            for answer in own:
                labels = torch.tensor([answer.tokens]).repeat(3, 1)
                rows = slice(3 * number, 3 * number + 3)
                tokens, _ = model.generator.token_logprobs(contexts.states[rows], contexts.mask[rows], labels)
                prior = contexts.doc_logprobs[number]
                mask = torch.ones(1, len(answer.tokens), dtype=torch.bool)
                expected = kind.marginal(prior.unsqueeze(0), tokens.unsqueeze(0), mask)
                assert answer.logprob == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
def test_the_answers_themselves_are_those_of_generate(documents, kind):
    one = documents.session.model
    model = kind(one.retriever, one.generator, 3).eval()
    with torch.inference_mode():
        contexts = model.read(model.prepare(QUESTIONS), 3)
        for decoding in (DECODING, Decoding(max_new_tokens=4), Decoding(max_new_tokens=4, thorough=False)):
            answers, proposed = answers_and_candidates(model, contexts, decoding)
            alone = generate(model, contexts, decoding)
            assert [[a.tokens for a in own] for own in answers] == [[a.tokens for a in own] for own in alone]
            assert all(own for own in proposed)
            for one_of, other in zip(answers, alone, strict=True):
                assert one_of[0].logprob == pytest.approx(other[0].logprob, abs=1e-4)
        drawn = Decoding(max_new_tokens=4, do_sample=True)
        assert answers_and_candidates(model, contexts, drawn)[1] == [[], []]


def an_answer(text: str, logprob: float, row: int) -> Answer:
    posterior = torch.tensor([0.1, 0.9])
    rows = np.array([99, row])
    return Answer(text, (5, 3), logprob, posterior.log(), posterior.log(), posterior, None, rows)


def test_equal_answers_are_one_and_shares_add_up():
    answers = [
        an_answer("the Leeds", math.log(0.3), 1),
        an_answer("Dover", math.log(0.25), 2),
        an_answer("Leeds.", math.log(0.1), 3),
        Answer("", (), -math.inf, torch.zeros(1), torch.zeros(1), torch.zeros(1), None, np.array([0])),
    ]
    first, second = merged(answers)
    assert (first.answer.text, second.answer.text) == ("the Leeds", "Dover")
    assert (first.logprob, first.share) == pytest.approx((math.log(0.4), 0.4 / 0.65))
    assert (second.logprob, second.share) == pytest.approx((math.log(0.25), 0.25 / 0.65))
    assert merged([]) == [] == merged(answers[3:])


def alternative(text: str, share: float, row: int) -> Alternative:
    return Alternative(an_answer(text, math.log(share), row), math.log(share), share)


def test_rivals_stand_elsewhere_and_say_something_else():
    best = alternative("Leeds", 0.5, 1)
    dover = alternative("Dover", 0.3, 2)
    assert rivals([best, dover], 0.2) == [best, dover]
    assert rivals([best, dover], 0.31) == []  # too small a share
    assert rivals([best, alternative("Dover", 0.3, 1)], 0.2) == []  # the same passage
    assert rivals([best, alternative("in Leeds", 0.3, 2)], 0.2) == []  # in more words
    assert rivals([best, alternative("Dover", 0.3, -1)], 0.2) == []  # no passage
    assert rivals([best], 0.2) == [] == rivals([], 0.2)
    york = alternative("York", 0.2, 3)
    assert rivals([best, dover, york], 0.2) == [best, dover, york]
    assert rivals([alternative("Leeds", 0.5, -1), dover, york], 0.2) == []  # the best one stands nowhere


@pytest.mark.slow
def test_two_people_of_one_name(tmp_path):
    """The project's reader over MiniLM and BM25: both towns are named, each with its own page."""
    ask = open_documents(write_notes(tmp_path / "notes", NAMESAKES))
    reply = ask(ASKED)
    found = {rival.answer: rival.source.file for rival in reply.rivals}
    assert found == {"Leeds": "painter.md", "Dover": "sailor.md"}
    assert sum(rival.share for rival in reply.rivals) <= 1 + 1e-6
    assert reply.rivals[0].answer == reply.answer
    sentences = {rival.answer: rival.sentence for rival in reply.rivals}
    assert sentences["Dover"] == "John Smith was born in Dover in 1790."
    alternatives = reply.record()["alternatives"]
    assert [each["passage"] for each in alternatives] == [rival.source.id for rival in reply.rivals]
    assert ask("Where was John Smith the sailor born?").rivals == ()


def test_rivals_are_shown_with_share_document_and_sentence():
    painter = Source("a.md#1", "John Smith <b>", "He painted. He was born in Leeds.", 0.6, 0.9, None)
    sailor = Source("b.md#2", "", "He sailed. He was born in Dover.", 0.4, 0.8, None)
    pair = (Rival("Leeds", -0.7, 0.6, painter), Rival("Dover", -1.1, 0.4, sailor))
    reply = Reply(ASKED, "Leeds", -0.7, (), (painter, sailor), rivals=pair)
    lines = [" ".join(line.plain.split()) for line in several(reply)]
    assert lines == [
        "Different passages give different answers:",
        "60% Leeds a.md, John Smith <b>: He was born in Leeds.",
        "40% Dover b.md: He was born in Dover.",
    ]
    page = answer_html(reply, "RAG")
    assert "60%&ensp;<strong>Leeds</strong>" in page and "<mark>Dover</mark>" in page
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert reply.record()["alternatives"][1] == {
        "answer": "Dover",
        "logprob": -1.1,
        "share": 0.4,
        "passage": "b.md#2",
        "title": "",
        "sentence": "He was born in Dover.",
    }
    alone = replace(reply, rivals=())
    assert several(alone) == [] and "Different passages" not in answer_html(alone, "RAG")
    assert "alternatives" not in alone.record()
