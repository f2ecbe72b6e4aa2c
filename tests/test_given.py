"""Gold passages instead of a search: what is retrieved, what it is for, and what is wrong with the files."""

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.testing import assert_close

from rag.errors import UserError
from rag.evaluation.judging import describe_gold_not_held
from rag.generators.context import Ragged, token_rows
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.unembedded import UnembeddedIndex
from rag.model import RagSequence
from rag.retrievers import GoldRetriever, Questions
from rag.tasks.example import Example

ASKED = [
    {
        "question": "what is the capital of France?",
        "answers": ["Paris"],
        "positive_ids": ["2", "absent", "1"],
    },
    {"question": "and of nowhere?", "answers": ["none"], "positive_ids": ["absent"]},
    {"question": "without gold", "answers": ["none"]},
]


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ASKED))
    return str(tmp_path / "dev.jsonl")


def test_the_gold_passages_that_the_index_holds_in_their_order(index, file):
    retriever = GoldRetriever.over(index.folder, file)
    found = retriever(Questions([ASKED[0]["question"]], {}), 3)
    assert index.passages.ids(found.rows[0]) == ["2", "1", ""]
    assert found.rows[0, 2] == -1 and found.scores[0].tolist() == [0.0, 0.0, -float("inf")]
    assert_close(found.doc_logprobs.exp()[0], torch.tensor([0.5, 0.5, 0.0]))
    assert retriever(Questions([ASKED[0]["question"]], {}), 1).rows.tolist() == [[index.passages.row_of("2")]]


def test_with_one_passage_the_model_is_its_generator(index, file, bart):
    """p(z|x) = 1: log p(y|x) is the generator's own, of the gold passage."""
    model = RagSequence(GoldRetriever.over(index.folder, file), bart, n_docs=1).eval()
    batch = model.prepare([ASKED[0]["question"]], ["Paris"])
    passage = index.passages[index.passages.row_of("2")]
    with torch.no_grad():
        logprob = model(batch).logprob
        passages = Ragged.of(token_rows(bart.tokenizer, [f"{passage.title} / {passage.text}"]))
        ids, mask = bart.assemble(batch.generator_questions, passages)
        alone, _ = bart.token_logprobs(bart.encode(ids, mask), mask, batch.labels)
    assert_close(logprob, (alone * batch.label_mask).sum(dim=1))


def test_it_is_made_again_from_its_description(index, file):
    node = OmegaConf.create(
        {"index": str(index.folder), "made": GoldRetriever.over(index.folder, file).description()}
    )
    again = instantiate(OmegaConf.to_container(node, resolve=True)["made"])
    assert again(Questions([ASKED[0]["question"]], {}), 1).rows.tolist() == [[index.passages.row_of("2")]]


def test_what_is_wrong_is_told(index, file, tmp_path):
    retriever = GoldRetriever.over(index.folder, file)
    with pytest.raises(UserError, match="knows no gold passage of the question 'who are you"):
        retriever(Questions(["who are you?"], {}), 1)
    with pytest.raises(UserError, match="knows no gold passage of the question 'without gold'"):
        retriever(Questions(["without gold"], {}), 1)
    with pytest.raises(UserError, match="holds none of the gold passages absent"):
        retriever(Questions(["and of nowhere?"], {}), 1)
    (tmp_path / "none.jsonl").write_text(json.dumps(ASKED[2]) + "\n")
    with pytest.raises(UserError, match=r"none.jsonl: no question has positive_ids"):
        GoldRetriever.over(index.folder, str(tmp_path / "none.jsonl"))


def test_the_pieces_of_a_gold_passage_are_read_in_their_order(tmp_path):
    """Of a corpus that was split, whose ids are "7#1", "7#2"; what only looks like a piece of 7 is none."""
    passages = [Passage(id, "", id) for id in ("7#2", "70", "8", "7#1", "7#x", "#3")]
    PassageStore.write(passages, tmp_path / "passages")
    index = UnembeddedIndex.open(tmp_path)
    assert index.passages.rows_of(["7", "8", "9", "#3", "7#1"]) == {"7": [0], "8": [2], "7#1": [3], "#3": [5]}
    assert index.passages.rows_of(["7", "absent"]) == {"7": [0, 3]}
    retriever = GoldRetriever(index, {"q": ["8", "7"]})
    assert retriever(Questions(["q"], {}), 4).rows.tolist() == [[2, 0, 3, -1]]
    assert index.passages.rows_of([]) == {}


def test_gold_passages_of_another_corpus_are_told_not_counted_as_not_found_in_silence(index):
    asked = [Example("a?", (), ("1",)), Example("b?", (), ("x", "y")), Example("c?", ("no gold",))]
    said = describe_gold_not_held(index.passages, asked, "dev.jsonl")
    assert said is not None and said.startswith(
        "dev.jsonl: the gold passages of 1 of 2 questions (such as x of 'b?') are not among the "
    )
    assert describe_gold_not_held(index.passages, [asked[0], asked[2]], "dev.jsonl") is None
