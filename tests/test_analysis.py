"""Looks at runs: tables against what was counted by hand, posteriors against transformers' own BART."""

import inspect
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from omegaconf import OmegaConf

from rag.analysis.__main__ import ANALYSES, load, main
from rag.analysis.attention import attended, attention, context_of
from rag.analysis.diversity import diversity
from rag.analysis.document_posterior import document_posterior, posterior
from rag.analysis.error_breakdown import error_breakdown
from rag.analysis.hot_swap_table import hot_swap_table
from rag.analysis.more_passages import more_passages
from rag.analysis.opened import Evaluation, open_model, settings
from rag.analysis.retrieval_change import ranks, retrieval_change
from rag.decoding.generation import generate
from rag.encoders.dpr import QuestionEncoder
from rag.errors import UserError
from rag.generators.lstm import new_model
from rag.generators.seq2seq import Generator
from rag.index.folder import Index
from rag.metrics.record import BM25, Record, swapped
from rag.model import RagModel
from rag.reports import plots
from rag.reports.contrast import LEAST, contrast
from rag.reports.page import cell, excerpt, of_frame
from rag.runs import PROJECT
from rag.tasks.example import Example

PNG = b"\x89PNG"
# Asked of the seven passages of conftest: the last one's answer is in none of them.
ASKED = [
    ("what is the capital of France?", ["Paris"], ["1"]),
    ("which river runs through Rome", ["the Tiber"], ["3"]),
    ("who wrote The Sun Also Rises in 1926?", ["Ernest Hemingway"], ["5"]),
    ("who lives in Atlantis?", ["nobody at all"], ["7"]),
]


class Folders:
    """Run folders of tiny models, as train.py and evaluate.py leave them."""

    def __init__(self, root: Path, index: Index, encoder: QuestionEncoder, generator: Generator):
        self.root, self.index = root, index
        encoder.save_pretrained(root / "start")
        self.questions = root / "questions.jsonl"
        rows = [{"question": q, "answers": a, "positive_ids": p} for q, a, p in ASKED]
        self.questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.encoder, self.generator = encoder, generator

    def trained(self, name: str = "rag_token", kind: str = "RagToken") -> Path:
        run = self.root / name
        self.generator.save_pretrained(run / "model" / "generator")
        config: dict[str, Any] = {"_target_": f"rag.model.{kind}", "generator": {}}
        config["generator"] = {"max_context_length": 64, "max_target_length": 16}
        if kind != "ClosedBook":
            self.encoder.save_pretrained(run / "model" / "question_encoder")
            config["retriever"] = {
                "_target_": "rag.retrievers.DenseRetriever.from_pretrained",
                "question_encoder": str(self.root / "start"),
                "index": str(self.index.folder),
            }
            config["n_docs"] = 3
        self.write(
            run, {"module": {"model": config}, "name": name, "seed": 1}, {"steps": 3, "training_seconds": 2.0}
        )
        return run

    def evaluated(
        self, run: Path, predictions: list[str], name: str = "all", records: Sequence[Record] = ()
    ) -> Path:
        folder = run / "evaluation" / name
        config = settings(run)
        config.checkpoint, config.batch_size = str(run), 2
        metrics = [each.plain() for each in records or [Record("em", 3, "test", 0.5, 0.2, 0.8, 4)]]
        result = {"questions": len(predictions), "n_docs": 3, "index": {}, "metrics": metrics}
        self.write(folder, OmegaConf.to_container(config), result)
        rows = [
            {"question": q, "answers": a, "prediction": p, "logprob": -1.0}
            for (q, a, _), p in zip(ASKED, predictions, strict=False)
        ]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def write(self, folder: Path, config: Any, result: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        common = {
            "task": {"_target_": "rag.tasks.qa.QuestionAnswering", "train": None, "dev": None},
            "index": {"path": str(self.index.folder)},
            "decoding": {"_target_": "rag.decoding.Decoding", "max_new_tokens": 6},
            "n_docs": 3,
            "question_encoder": str(self.root / "start"),
        }
        common["task"]["test"] = str(self.questions)
        OmegaConf.save(OmegaConf.create(common | config), folder / "config.yaml")
        run = {
            "command": "python train.py seed=1",
            "commit": "0123abc",
            "machine": "two cores",
            "versions": {"torch": "2"},
        }
        (folder / "run.json").write_text(json.dumps(run))
        (folder / "result.json").write_text(json.dumps({"metrics": {"dev/em": 0.25}, **result}))


@pytest.fixture
def folders(tmp_path, index, question_encoder, bart) -> Folders:
    return Folders(tmp_path, index, question_encoder, bart)


def joint(model: RagModel, question: str, answer: str, n_docs: int) -> tuple[np.ndarray, np.ndarray]:
    """p(z|x) (K,) and p(y_i|x,z,y_<i) (K, T), passage by passage with transformers' BART and the text itself."""
    retriever, tokenizer, bart = model.retriever, model.generator.tokenizer, model.generator.model
    query = retriever.question_encoder(**retriever.question_encoder.tokenize([question])).detach().numpy()
    scores = retriever.index.vectors(np.arange(len(retriever.index))) @ query[0]
    best = np.argsort(-scores)[:n_docs]
    prior = np.exp(scores[best]) / np.exp(scores[best]).sum()
    labels = [*tokenizer(answer, add_special_tokens=False)["input_ids"], 2]
    by_token = []
    for row in best:
        passage = retriever.index.passages[int(row)]
        ids = tokenizer(f"{passage.title} / {passage.text} // {question}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = bart(input_ids=ids, decoder_input_ids=torch.tensor([[2, *labels[:-1]]])).logits[0]
        by_token.append(logits.softmax(dim=1)[range(len(labels)), labels].numpy())
    return prior, np.array(by_token)


@pytest.mark.parametrize("kind", ["RagToken", "RagSequence"])
def test_posterior_is_bayes_rule(folders, kind):
    model, decoding = open_model(settings(folders.trained("run", kind)))
    question, answer = "which river runs through Rome", "the Tiber"
    result = posterior(model, question, answer, 3, decoding)
    prior, by_token = joint(model, question, answer, 3)
    if kind == "RagSequence":
        by_token = by_token.cumprod(axis=1)
    weighed = prior[:, None] * by_token
    assert result.tokens == ["the", "Tiber", "(end)"]
    np.testing.assert_allclose(result.prior, prior, rtol=1e-4)
    np.testing.assert_allclose(result.by_token, weighed / weighed.sum(axis=0), rtol=1e-3)
    whole = prior * joint(model, question, answer, 3)[1].prod(axis=1)
    np.testing.assert_allclose(result.whole, whole / whole.sum(), rtol=1e-3)
    if kind == "RagSequence":  # once the answer is complete, its posterior
        np.testing.assert_allclose(result.by_token[:, -1], result.whole, rtol=1e-4)


def test_the_posterior_of_the_models_own_answer_is_the_decoders(folders):
    run = folders.trained()
    analysis = document_posterior(run, n_docs=4)
    model, decoding = open_model(settings(run))
    answer = generate(model, model.read(model.prepare([ASKED[0][0]]), 4), decoding)[0][0]
    assert list(analysis.table.columns)[0] == "p(z|x)" and len(analysis.table) == 4
    again = posterior(model, ASKED[0][0], answer.text, 4, decoding)
    length = min(len(answer.tokens), again.by_token.shape[1] - 1)  # the decoder may have stopped at its limit
    assert length >= 1
    np.testing.assert_allclose(
        again.by_token[:, :length], answer.token_posterior[:, :length], rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(analysis.table["p(z|x)"], answer.doc_logprobs.exp(), rtol=1e-4)


def test_an_empty_answer_is_its_end_alone(folders):
    model, decoding = open_model(settings(folders.trained()))
    torch.nn.init.zeros_(model.generator.model.final_logits_bias)
    with torch.no_grad():
        model.generator.model.final_logits_bias[0, model.generator.end_token] = 100  # it ends at once
    result = posterior(model, ASKED[0][0], None, 3, decoding)
    assert result.answer == "" and result.tokens == ["(end)"]
    np.testing.assert_allclose(result.by_token[:, 0], result.prior, rtol=1e-4)


def test_closed_book_has_no_posterior(folders):
    with pytest.raises(UserError, match="reads no passages"):
        document_posterior(folders.trained("closed_book", "ClosedBook"))


def test_ranks_are_counted_from_one(index):
    examples = [
        Example("q", ("x",), ("3",)),
        Example("q", ("Seine",), ()),
        Example("q", ("Tiber",), ("1", "7")),
    ]
    rows = np.array([[4, 2, 0], [0, 1, 2], [3, 6, 0]])
    np.testing.assert_array_equal(ranks(index.passages, rows, examples, by_id=True), [2, np.nan, 2])
    # Paris' passage names the Seine, Rome's and the Tiber's own the Tiber; x is nowhere
    np.testing.assert_array_equal(ranks(index.passages, rows, examples, by_id=False), [4, 1, 2])


def test_retrieval_before_and_after(folders, index):
    torch.manual_seed(5)
    tokenizer = conftest.bert_tokenizer()
    before = QuestionEncoder(conftest.tiny_question_encoder(len(tokenizer)), tokenizer)
    before.save_pretrained(folders.root / "other")
    run = folders.trained()
    result = retrieval_change(run, before=str(folders.root / "other"), depth=7)

    def rank(encoder: QuestionEncoder, question: str, gold: str) -> int:
        with torch.no_grad():
            query = encoder(**encoder.tokenize([question])).numpy()
        order = np.argsort(-(index.vectors(np.arange(7)) @ query[0]))
        return int(np.flatnonzero(order == int(gold) - 1)[0]) + 1

    old = np.array([rank(before, q, gold[0]) for q, _, gold in ASKED])
    new = np.array([rank(folders.encoder, q, gold[0]) for q, _, gold in ASKED])
    assert (old != new).any()
    assert result.table["recall@"].tolist() == [1, 2, 5]
    for k, *both in result.table.iloc[:, :3].itertuples(index=False):
        np.testing.assert_allclose(both, [(old <= k).mean(), (new <= k).mean()])
    assert f"nearer the top for {(new < old).sum()}, farther for {(new > old).sum()}" in result.text
    assert result.examples is not None and len(result.examples) == (old != new).sum()
    changes = {q: f"{a} → {b}" for (q, _, _), a, b in zip(ASKED, old, new, strict=True)}
    for _, row in result.examples.iterrows():
        assert row["rank"] == changes[row["question"]]

    same = retrieval_change(run, depth=7)  # the encoder the run started from is its own
    assert same.table["gained"].tolist() == [0, 0, 0] and len(same.examples) == 0


def test_mistakes_of_reading_and_of_retrieval(folders):
    run = folders.trained()
    folder = folders.evaluated(run, ["paris", "the Seine", "Ernest Hemingway", "Plato"])
    config = OmegaConf.load(folder / "config.yaml")
    config.n_docs = 7  # everything is read, so what is missing is nowhere
    OmegaConf.save(config, folder / "config.yaml")
    result = error_breakdown(run)
    assert result.table[["questions", "right", "wrong"]].to_numpy().tolist() == [
        [3, 2, 1],
        [1, 0, 1],
        [4, 2, 2],
    ]
    assert result.table["exact match"].tolist() == pytest.approx([2 / 3, 0, 0.5])
    assert result.examples is not None
    assert result.examples[["mistake of", "answered"]].to_numpy().tolist() == [
        ["reading", "the Seine"],
        ["retrieval", "Plato"],
    ]


def test_another_test_set_is_noticed(folders):
    run = folders.trained()
    folders.evaluated(run, ["a"])
    with pytest.raises(UserError, match="have changed since"):
        error_breakdown(run)


def test_exact_match_and_recall_against_k(folders):
    runs = [folders.trained("rag_token"), folders.trained("rag_sequence", "RagSequence")]
    for run, em in zip(runs, (0.25, 0.5), strict=True):
        values = {("em", 1): em, ("em", 5): em + 0.25, ("recall", 1): em, ("recall", 5): 1.0}
        records = [Record(metric, k, "test", value, 0.0, 1.0, 4) for (metric, k), value in values.items()]
        records += [Record("recall", k, "test", v, 0.0, 1.0, 4, BM25) for k, v in ((1, 0.1), (5, 0.2))]
        folders.evaluated(run, ["a"] * 4, records=records)
    result = more_passages(runs)
    assert [axis.get_title() for axis in result.figure.axes] == ["exact match", "What is retrieved"]
    table = result.table
    assert table["metric"].tolist() == ["exact match"] * 2 + ["recall"] * 3
    assert table["n"].tolist() == [4] * 5
    assert table["model"].tolist() == ["RAG-Token", "RAG-Sequence", "RAG-Token", "RAG-Sequence", "BM25"]
    assert table["K = 1"].tolist() == [0.25, 0.5, 0.25, 0.5, 0.1]
    assert table["K = 5"].tolist() == [0.5, 0.75, 1.0, 1.0, 0.2]


def test_without_several_k_the_command_is_told(folders):
    run = folders.trained()
    folders.evaluated(run, ["a"])
    with pytest.raises(UserError, match=r"evaluate.py checkpoint=\S+ k_sweep=\[1,5"):
        more_passages([run])


def test_hot_swap_asks_by_row_and_indexes_by_column(folders):
    run = folders.trained()
    cells = {"AA": 0.9, "AB": 0.1, "BA": 0.2, "BB": 0.8}
    records = [Record("em", 3, "q", value, 0.0, 1.0, 7, swapped(*pair)) for pair, value in cells.items()]
    table = hot_swap_table([folders.evaluated(run, ["a"], records=records)]).table
    assert table.to_numpy().tolist() == [["RAG-Token", "A", 7, 0.9, 0.1], ["RAG-Token", "B", 7, 0.2, 0.8]]


def test_distinct_trigrams(folders):
    run = folders.trained()
    folders.evaluated(run, ["a b c d", "a b c", "x y", "b c d"])  # abc bcd abc bcd: 2 of 4
    table = diversity([run]).table
    # "nobody at all" is the only reference with three words
    assert table["distinct trigrams, %"].tolist() == [100.0, 50.0]
    assert table["words per text"].tolist() == [8 / 4, 12 / 4]


def test_different_questions_are_not_compared(folders):
    run = folders.trained()
    both = [folders.evaluated(run, ["a b c"] * n, name=str(n)) for n in (3, 4)]
    with pytest.raises(UserError, match="answered different questions"):
        diversity(both)


def test_of_several_evaluations_the_latest_is_taken_and_named(folders, capsys):
    run = folders.trained()
    old, new = (folders.evaluated(run, ["a"], name=name) for name in ("z", "a"))
    os.utime(old / "result.json", (1, 1))
    assert Evaluation.open(run).folder == new
    said = capsys.readouterr().out
    assert f"using {new}" in said and f"run={old}" in said
    assert Evaluation.open(old).folder == old and not capsys.readouterr().out


def test_texts_too_short_for_trigrams_are_named(folders):
    run = folders.trained()
    folders.evaluated(run, ["a b c d e", "a b", "a b", "a"])
    assert "have fewer than three words" in (result := diversity([run])).text
    assert "and of RAG-Token have fewer than three words on average" in result.text
    assert result.table["with a trigram"].tolist() == [1, 1]


def test_attention_over_a_passage_and_the_question(folders):
    """Where the keys of the last layer are all the same, so are the weights: one over the context's length."""
    keys = folders.generator.model.model.decoder.layers[-1].encoder_attn.k_proj
    sharp = attention(
        folders.trained(), answer="the Tiber", question="which river runs through Rome", passage=2
    )
    torch.nn.init.zeros_(keys.weight)
    even = attention(
        folders.trained(), answer="the Tiber", question="which river runs through Rome", passage=2
    )
    for result in (sharp, even):
        assert result.table["token"].tolist() == ["the", "Tiber", "(end)"]
    length = int(re.findall(r"the (\d+) tokens of the context", even.text)[0])
    assert set(even.table["1."]) == {f"<s> {1 / length:.3f}"}  # of equals, the first
    strengths = [float(cell.split()[-1]) for cell in sharp.table["1."]]
    assert min(strengths) > 1 / length
    assert all(a >= float(b.split()[-1]) for a, b in zip(strengths, sharp.table["2."], strict=True))


def test_attention_of_the_lstm_is_its_own(folders):
    """α as the decoder computes it from its states, one head, one layer."""
    tokenizer = folders.generator.tokenizer
    folders.generator = Generator(new_model(tokenizer, width=8, layers=1).eval(), tokenizer)
    run = folders.trained()
    result = attention(run, answer="the Tiber", question="which river runs through Rome", passage=2)
    model, _ = open_model(settings(run))
    lstm = model.generator.model
    ids, mask = context_of(model, "which river runs through Rome", 2)
    start = [
        lstm.config.decoder_start_token_id,
        *tokenizer("the Tiber", add_special_tokens=False)["input_ids"],
    ]
    with torch.no_grad():
        states = lstm.encoder(ids, mask.long()).last_hidden_state
        decoded = lstm.decoder(torch.tensor([start]), states, mask.long(), output_attentions=True)
    expected = decoded.cross_attentions[0][0, 0].numpy()
    weights, tokens = attended(model.generator, ids, mask, "the Tiber")
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert result.table["token"].tolist() == tokens
    assert [float(cell.split()[-1]) for cell in result.table["1."]] == pytest.approx(
        expected.max(axis=1), abs=6e-4
    )


def test_a_run_that_is_none_is_told(folders, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Evaluation.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no finished evaluation"):
        Evaluation.open(folders.trained())


def test_the_command_writes_a_page_and_a_picture(folders, capsys, monkeypatch):
    run = folders.trained()
    folders.evaluated(run, ["a b c d", "x"])
    main(["document_posterior", f"run={run}", "n_docs=2", "answer=Paris", f"output={folders.root / 'out'}"])
    assert (folders.root / "out" / "document_posterior.png").read_bytes()[:4] == PNG
    page = (folders.root / "out" / "document_posterior.md").read_text()
    assert "![Document posterior](document_posterior.png)" in page
    assert f"python -m rag.analysis document_posterior run={run} n_docs=2 answer=Paris" in page
    assert page.count("\n| ") == 2 + 2  # head, rule, two passages
    main(["diversity", f"run={run}"])
    assert (run / "analysis" / "diversity.md").exists()
    out = capsys.readouterr().out
    assert "diversity of " in out and str(run / "analysis" / "diversity.md") in out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["posterior"], "the analysis posterior does not exist"),
        (["diversity"], "one or more runs"),
        (["attention", f"run={PROJECT}", f"run={PROJECT}"], "takes one run"),
        (["attention", f"run={PROJECT}", "pasage=2"], "did you mean passage"),
        (["attention", f"run={PROJECT}", "passage=two"], "a whole number is expected"),
        (["attention", "a"], "is not a setting"),
    ],
)
def test_mistakes_on_the_command_line(arguments, told):
    with pytest.raises(UserError, match=told):
        main(arguments)


def test_help_names_every_analysis(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    for name, does in ANALYSES.items():
        assert f"  {name} " in out and does in out
        assert (inspect.getdoc(load(name)) or "").startswith(does.removesuffix(".").split(" (")[0])
    analyses = (
        path for path in (PROJECT / "rag" / "analysis").glob("*.py") if "-> Analysis:" in path.read_text()
    )
    assert {path.stem for path in analyses} - {"run_report", "page"} == set(ANALYSES)
    main(["retrieval_change", "--help"])
    out = capsys.readouterr().out
    assert "run=FOLDER [before=] [depth=" in out and "before: another question encoder" in out


def test_cells_say_what_is_missing():
    assert [cell(v) for v in (0.5, np.float32(0.25), 1234, None, float("nan"), "a", True)] == [
        *("0.500", "0.250", "1,234", "–", "–", "a", "True")
    ]
    frame = pd.DataFrame({"a|b": [1]}, index=pd.Index(["x\ny"], name="row"))
    assert of_frame(frame) == ["| row | a\\|b |", "| --- | --- |", "| x y | 1 |"]


def test_an_excerpt_shows_the_first_word_that_is_there():
    text = "She worked for the Southern Bank for years and years."
    assert excerpt(text, ["southern railway", "southern"], 30) == "…d for the Southern Bank for y…"
    assert excerpt(text, ["nothing"], 12) == "She worked…"
    assert excerpt("short", ["short"], 30) == "short"


def test_figures_are_drawn_where_the_numbers_are():
    figure, axes = plots.new_figure(4, 3)
    plots.against_k(axes[0, 0], {"rag_token": {1: 0.25, 10: 0.5, 20: None}})
    (line,) = axes[0, 0].lines
    assert line.get_xydata().tolist() == [[1, 0.25], [10, 0.5]] and line.get_color() == "#009E73"
    figure, axes = plots.new_figure(4, 3)
    image = plots.grid(axes[0, 0], [[0.0, 1.0]], ["row"], ["left", "right"])
    assert image.get_array().tolist() == [[0.0, 1.0]]
    assert [text.get_text() for text in axes[0, 0].texts] == ["0.00", "1.00"]
    assert [text.get_color() for text in axes[0, 0].texts] == ["#000000", "#ffffff"]


def test_lines_at_one_height_are_both_seen_and_no_legend_lies_on_them():
    figure, axes = plots.new_figure(5, 4)
    both = {"rag_sequence": {1: 1.0, 10: 1.0}, "rag_token": {1: 1.0, 10: 1.0}}
    plots.against_k(axes[0, 0], both)
    first, second = axes[0, 0].lines
    assert first.get_linewidth() > second.get_linewidth() and first.get_xdata()[0] < second.get_xdata()[0]
    figure.canvas.draw()
    assert axes[0, 0].get_legend().get_window_extent().y1 < axes[0, 0].get_window_extent().y0
    radius = first.get_markersize() / 2 * figure.dpi / 72
    top = axes[0, 0].transData.transform((1, 1.0))[1] + radius
    assert top < axes[0, 0].get_window_extent().y1  # the frame cuts no marker


@pytest.mark.parametrize("value", [n / 20 for n in range(21)])
def test_a_number_on_its_colour_can_be_read(value):
    figure, axes = plots.new_figure(4, 3)
    image = plots.grid(axes[0, 0], [[value]], ["row"], ["column"])
    text = to_rgb(axes[0, 0].texts[0].get_color())
    assert contrast(image.cmap(image.norm(value)), text) >= LEAST
