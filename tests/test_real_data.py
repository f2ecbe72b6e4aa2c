"""Preparation, retrieval and metrics on real questions over 200,000 real passages, where they are at hand.

What they found is in docs/log.md; the bounds here only notice that something broke.
"""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from rag.evaluation.judging import passage_metrics
from rag.index.passages import PassageStore
from rag.metrics.qa import compile_answer
from rag.retrievers.lexical import BM25
from rag.tasks.curated_trec import CuratedTREC
from rag.tasks.fever import Fever
from rag.tasks.jeopardy import JeopardyQuestions
from rag.tasks.preparation import training_pairs
from rag.tasks.qa import QuestionAnswering
from rag.tasks.trivia_qa import TriviaQA
from rag.training.questions import sample

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("real"),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}"),
]
CT_QUESTIONS, TRIVIA_QUESTIONS, SQUAD_QUESTIONS = 1758, 1000, 2000


class OverPassages(nn.Module):
    """BM25 over a store of passages that has no vectors."""

    def __init__(self, store: PassageStore):
        super().__init__()
        self.scorer = BM25.build(store)
        self.index = SimpleNamespace(passages=store)


@pytest.fixture(scope="module")
def bm25(tmp_path_factory: pytest.TempPathFactory) -> OverPassages:
    folder = tmp_path_factory.mktemp("real") / "passages"
    return OverPassages(PassageStore.prepare(DATA / "wiki_open" / "passages.tsv.xz", folder))


def prepared_counts(folder: Path) -> dict:
    (file,) = folder.glob("*-*.json")
    return json.loads(file.read_text())


def test_curated_trecs_targets_match_their_expressions(bm25, tmp_path, capsys):
    task = CuratedTREC(train=str(DATA / "curated_trec" / "train.jsonl.gz"), answers="answer_regex")
    expressions = {example.question: example.answers for example in task.examples("train")}
    pairs = training_pairs(task, bm25, tmp_path)
    counts = prepared_counts(tmp_path)
    print(counts)
    assert counts["questions"] == CT_QUESTIONS and counts["found"] > 1000
    single = [(example, target) for example, target in pairs if len(example.answers) == 1]
    matching = [
        any(compile_answer(one).search(target) for one in expressions[example.question])
        for example, target in single
    ]
    assert np.mean(matching) > 0.97


def test_trivia_qas_answers_are_kept_where_passages_hold_them(bm25, tmp_path):
    with gzip.open(DATA / "trivia_open" / "dev.jsonl.gz", "rt", encoding="utf-8") as file:
        chosen = sample(list(file), TRIVIA_QUESTIONS)
    (tmp_path / "trivia.jsonl").write_text("".join(chosen), encoding="utf-8")
    task = TriviaQA(train=str(tmp_path / "trivia.jsonl"))
    pairs = training_pairs(task, bm25, tmp_path / "prepared")
    counts = prepared_counts(tmp_path / "prepared")
    print(counts)
    assert counts["questions"] == TRIVIA_QUESTIONS and counts["kept"] == counts["found"] > 600
    assert len(pairs) == counts["answers"]["after"] < counts["answers"]["before"] / 3


def test_bm25s_recall_on_squad(bm25):
    """The data's own numbers for its first 2,000 questions: .55 .78 .88 an answer, .47 .70 .81 a listed passage."""
    task = QuestionAnswering(dev=str(DATA / "wiki_open" / "squad_dev.jsonl.gz"))
    examples = task.examples("dev")[:SQUAD_QUESTIONS]
    _, rows = bm25.scorer.search([example.question for example in examples], 20)
    metrics = passage_metrics(task, bm25.index.passages, rows, examples, [1, 5, 20])
    for name, by_k in metrics.items():
        print(name, {k: (round(m.value, 3), round(m.low, 3), round(m.high, 3)) for k, m in by_k.items()})
    assert [metrics["recall"][k].value for k in (1, 5, 20)] == pytest.approx([0.47, 0.70, 0.81], abs=0.01)
    assert [metrics["answer_recall"][k].value for k in (1, 5, 20)] == pytest.approx(
        [0.55, 0.78, 0.88], abs=0.02
    )


def test_jeopardys_measures_on_real_clues():
    """Clues judged against themselves, and against those of the next question."""
    task = JeopardyQuestions(dev=str(DATA / "jeopardy" / "dev.jsonl.gz"))
    examples = task.examples("dev")
    clues = [example.answers[0] for example in examples]
    same, other = task.score(clues, examples), task.score([*clues[1:], clues[0]], examples)
    for name in ("bleu_1", "q_bleu_1", "rouge_l", "distinct_trigrams"):
        print(name, *(f"{m.value:.4f} [{m.low:.4f}, {m.high:.4f}]" for m in (same[name], other[name])))
    assert same["bleu_1"].value == pytest.approx(1) and same["rouge_l"].value == pytest.approx(1)
    assert same["q_bleu_1"].value > 0.8 > 0.25 > other["q_bleu_1"].value > 0.02
    assert same["distinct_trigrams"].value == same["distinct_trigrams_gold"].value > 0.9


def test_fevers_titles_on_real_claims(bm25):
    """Each of the numbers of section 4.4, of BM25 over a part of Wikipedia that does not hold all gold articles."""
    task = Fever(dev=str(DATA / "fever" / "fever_dev.jsonl.gz"))
    examples = sample(task.examples("dev"), 1000)
    _, rows = bm25.scorer.search([example.question for example in examples], 10)
    (hits,) = [passage_metrics(task, bm25.index.passages, rows, examples, [1, 10])["title_hit"]]
    print({k: (round(m.value, 3), round(m.low, 3), round(m.high, 3), m.count) for k, m in hits.items()})
    assert hits[1].count == sum(example.answers != ("unknown",) for example in examples)
    assert 0.02 < hits[1].value < hits[10].value
    majority = task.score(["true"] * len(examples), examples)["accuracy"]
    assert majority.value == pytest.approx(1 / 3, abs=0.05)
