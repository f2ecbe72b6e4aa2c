"""What a model trains is what it names; a part written elsewhere is trained, saved and reopened like any other."""

import functools
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import PASSAGES, QUESTIONS, tiny_bart, word_tokenizer
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from rag.errors import UserError
from rag.files import read_json, write_json
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook, RagSequence, RagToken
from rag.parts import TrainedPart, check_parts, describe, describe_partial, load_parts, save_model, save_parts
from rag.reopen import reopen
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.lexical import BM25
from rag.retrievers.lexical_retriever import LexicalRetriever
from rag.retrievers.null_document import NullBias
from rag.retrievers.protocol import Retriever
from rag.runs import PROJECT
from rag.saved_model import load_config
from rag.scratch.one_layer import OneLayerQuestionEncoder
from rag.training.module import RagModule
from rag.training.optimization import Optimization


@pytest.fixture
def mapped(monkeypatch, tmp_path):
    """The retriever of CONTRIBUTING.md, as a module of its own."""
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text.partition("## A new retriever")[2], re.DOTALL)
    (tmp_path / "mapped.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("mapped").Mapped
    sys.modules.pop("mapped")


def finished(folder: Path, model, index=None) -> Path:
    """A run folder with a model in it, as train.py leaves one."""
    (folder / "model").mkdir(parents=True)
    save_model(model, folder / "model", folder, index=index and index.folder, n_docs=model.n_docs)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml({"module": {"model": {}}}), encoding="utf-8")
    write_json(folder / "result.json", {})
    return folder


def likelihood(model) -> torch.Tensor:
    with torch.no_grad():
        return model(model.prepare(QUESTIONS, ["Paris", "the Tiber", "Ernest Hemingway"])).logprob


def test_a_retriever_written_elsewhere_trains_is_saved_and_answers_the_same_after_reopening(
    mapped, retriever, bart, index, tmp_path
):
    model = RagSequence(mapped(retriever), bart, n_docs=3)
    with torch.no_grad():
        model.retriever.map.bias.normal_()
    module = RagModule(model, Optimization(lr=1e-2, question_encoder_lr=1e-3, warmup_steps=0))
    optimizer = module.optimization.configure(model.trained_parts(), max_steps=10)["optimizer"]
    (group,) = [
        g for g in optimizer.param_groups if any(p is model.retriever.map.weight for p in g["params"])
    ]
    assert group["initial_lr"] == 1e-3  # the retriever's rate
    before = model.retriever.map.weight.clone()
    (-model(model.prepare(QUESTIONS, ["Paris", "the Tiber", "Rome"])).logprob.mean()).backward()
    optimizer.step()
    assert not torch.equal(model.retriever.map.weight, before)

    run = finished(tmp_path / "run", model.eval(), index)
    again = reopen(run, trust=True)
    assert type(again.retriever) is mapped and not again.training
    torch.testing.assert_close(likelihood(again), likelihood(model))
    assert torch.equal(again.retriever.map.weight, model.retriever.map.weight)


def test_a_weight_that_no_part_names_is_found_before_training(mapped, retriever, bart):
    class Forgetful(mapped):
        def trained_parts(self):
            return self.dense.trained_parts()

    with pytest.raises(UserError, match=r"retriever\.map\.weight .* name its module in trained_parts\(\)"):
        RagModule(RagSequence(Forgetful(retriever), bart), Optimization())
    frozen = Forgetful(retriever)
    frozen.map.requires_grad_(False)  # as the message says
    RagModule(RagSequence(frozen, bart), Optimization())


def test_two_parts_in_one_file_are_refused():
    part = TrainedPart("a", nn.Linear(1, 1))
    with pytest.raises(UserError, match="two trained parts are saved as a"):
        check_parts(nn.Sequential(), [part, part])


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
@pytest.mark.parametrize("null", [None, NullBias(start=1.5)])
def test_dense_models_answer_the_same_after_reopening(kind, null, question_encoder, index, bart, tmp_path):
    model = kind(DenseRetriever(question_encoder, index, null_document=null), bart, n_docs=2).eval()
    again = reopen(finished(tmp_path / "run", model, index))
    assert type(again) is kind and again.n_docs == 2
    torch.testing.assert_close(likelihood(again), likelihood(model))
    assert reopen(tmp_path / "run", n_docs=4).n_docs == 4


def test_lexical_and_closed_book_models_answer_the_same_after_reopening(index, bart, tmp_path):
    build = functools.partial(BM25.build, k1=1.7)
    lexical = RagToken(LexicalRetriever(build(index.passages), index, build), bart, n_docs=2).eval()
    again = reopen(finished(tmp_path / "lexical", lexical, index))
    assert again.retriever.scorer.settings == lexical.retriever.scorer.settings
    torch.testing.assert_close(likelihood(again), likelihood(lexical))
    closed = ClosedBook(bart).eval()
    torch.testing.assert_close(likelihood(reopen(finished(tmp_path / "closed", closed))), likelihood(closed))


def test_a_run_that_was_moved_with_its_index_is_reopened_and_without_it_says_what_it_lacks(
    retriever, bart, passage_encoder, tmp_path
):
    from conftest import build_tiny_index

    index = build_tiny_index(tmp_path / "here" / "index", passage_encoder)
    model = RagSequence(DenseRetriever(retriever.question_encoder, index), bart, n_docs=2).eval()
    run = finished(tmp_path / "here" / "run", model, index)
    expected = likelihood(model)
    (tmp_path / "here").rename(tmp_path / "there")
    torch.testing.assert_close(likelihood(reopen(tmp_path / "there" / "run")), expected)
    (tmp_path / "there" / "run").rename(tmp_path / "alone")
    with pytest.raises(
        UserError, match=r"alone was trained over the index .*here/index, which is not there: give"
    ):
        reopen(tmp_path / "alone")
    again = reopen(tmp_path / "alone", index=tmp_path / "there" / "index")
    torch.testing.assert_close(likelihood(again), expected)
    assert not run.exists()


def test_no_run_and_no_description(tmp_path):
    with pytest.raises(UserError, match="not a run folder of train.py"):
        reopen(tmp_path)
    (tmp_path / "config.yaml").write_text("module: {model: {}}\n", encoding="utf-8")
    write_json(tmp_path / "result.json", {})
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "model.json", {"something": "else"})
    with pytest.raises(UserError, match="is no model description, or was edited"):
        reopen(tmp_path)


def test_a_part_without_a_format_of_its_own_goes_to_safetensors_and_back(tmp_path):
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    save_parts([TrainedPart("a.safetensors", first)], tmp_path)
    load_parts([TrainedPart("a.safetensors", second)], tmp_path)
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(UserError, match="a.safetensors does not hold the weights of this Linear"):
        load_parts([TrainedPart("a.safetensors", nn.Linear(3, 3))], tmp_path)
    with pytest.raises(UserError, match="b.safetensors does not hold"):
        load_parts([TrainedPart("b.safetensors", second)], tmp_path)


def test_descriptions_are_what_hydra_instantiates():
    assert describe(Generator.from_pretrained, path="x") == {
        "_target_": "rag.generators.Generator.from_pretrained",
        "path": "x",
    }
    # a classmethod that a class of another module inherits
    assert describe(OneLayerQuestionEncoder.from_pretrained)["_target_"] == (
        "rag.scratch.one_layer.OneLayerQuestionEncoder.from_pretrained"
    )
    node = describe_partial(functools.partial(functools.partial(dict, a=1), b=2))
    assert instantiate(node)() == {"a": 1, "b": 2}


def test_retrievers_of_the_project_offer_the_whole_protocol(retriever, index):
    lexical = LexicalRetriever(BM25.build(index.passages), index, BM25.build)
    assert isinstance(retriever, Retriever) and isinstance(lexical, Retriever)
    assert lexical.kind == "BM25" and retriever.kind is None
    assert lexical.reads_whole("x" * 10_000) and not retriever.reads_whole("x " * 1_000)
    for each in (retriever, lexical):
        questions = each.prepare(QUESTIONS)
        assert (each.find(questions, 3) == each(questions, 3).rows).all()
    assert len(PASSAGES) == len(index)


def test_model_json_says_where_the_index_was(retriever, index, tmp_path):
    tokenizer = word_tokenizer()
    model = RagSequence(retriever, Generator(tiny_bart(len(tokenizer)), tokenizer), n_docs=2)
    saved = read_json(finished(tmp_path / "run", model, index) / "model" / "model.json")
    assert saved["answers"] and saved["n_docs"] == 2 and saved["index"] == str(index.folder.resolve())
    assert (tmp_path / "run" / saved["index_from_run"]).resolve() == index.folder.resolve()
    assert saved["model"]["retriever"]["question_encoder"] == "${folder}/question_encoder"


def test_a_run_of_an_older_version_finds_the_classes_where_they_are_now(tmp_path):
    text = """module:
  _target_: rag.module.RagModule
  model: {retriever: {null_document: {_target_: rag.null_document.NullBias}}}
task:
  _target_: rag.tasks.qa.QuestionAnswering
index: {type: {_target_: rag.index_type.IndexType, factory: "HNSW32"}}
decoding: {_target_: rag.decoding.Decoding, num_beams: 2}
"""
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "config.yaml")
    assert config.module._target_ == "rag.training.RagModule"
    null = instantiate(config.module.model.retriever.null_document)
    assert isinstance(null, NullBias)
    assert instantiate(config.index.type).factory == "HNSW32" and instantiate(config.decoding).num_beams == 2
    assert config.task._target_ == "rag.tasks.qa.QuestionAnswering"
    (tmp_path / "config.yaml").write_text("[1, 2", encoding="utf-8")
    with pytest.raises(UserError, match="config.yaml cannot be read"):
        load_config(tmp_path / "config.yaml")
