"""The hub at work, on a small one of its own: what is downloaded, what happens when it changes, refuses or is gone."""

import logging
import socket
import threading

import pytest
import torch
import transformers
from conftest import ANSWERS, QUESTIONS
from hub_repositories import build
from hub_server import copy_hub
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import close_session
from sentence_folders import tiny_transformer, write_modules

from rag import hub
from rag.checkpoint import architecture
from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.encoders.opening import open_question_encoder
from rag.errors import UserError
from rag.fingerprints import fingerprint
from rag.generators.seq2seq import Generator
from rag.model import RagSequence, RagToken
from rag.runs import Run
from rag.training.dpr import bert_encoders
from rag.training.summary import dtypes


@pytest.fixture(scope="session")
def repositories(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    build(root)
    return root


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Let this process use a hub at an address, with an empty cache."""

    def use(address):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hf_api.api, "endpoint", address)  # of the functions of huggingface_hub
        if (of_transformers := getattr(transformers.utils.hub, "hf_api", None)) is not None:
            monkeypatch.setattr(of_transformers(), "endpoint", address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        hub.commit.cache_clear()
        close_session()

    yield use
    hub.commit.cache_clear()
    close_session()


@pytest.fixture
def online(repositories, at, tmp_path):
    with copy_hub(repositories, tmp_path / "served") as server:
        at(server.address)
        yield server


def go_on(at, server):
    """What another process would find: nothing is remembered."""
    at(server.address if not isinstance(server, str) else server)


# -- released models --------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [RagToken, pytest.param(RagSequence, marks=pytest.mark.slow)])
def test_the_released_rag_models_load(online, index, model_class, caplog):
    name = f"facebook/rag-{'token' if model_class is RagToken else 'sequence'}-nq"
    with caplog.at_level(logging.WARNING):
        model = model_class.from_pretrained(name, index).eval()
    assert not caplog.records  # nothing of what was saved is missed or left over but the pooler and positions
    assert architecture(name) == (model_class.architecture, 5)
    assert model.n_docs == 5 and model.generator.lowercase_questions and dtypes(model) == "float32"
    batch = model.prepare(["Who wrote The Sun Also Rises"], ["Paris"])
    assert model(batch).logprob.isfinite().all()
    words = " // who wrote the sun also rises"
    assert model.generator.tokenizer.decode(batch.generator_questions.tokens) == words
    weights = torch.load(
        online.folder("models", name) / "pytorch_model.bin", weights_only=True, map_location="cpu"
    )
    prefix = "rag.question_encoder."
    loaded_weights = model.retriever.question_encoder.model.state_dict()
    assert loaded_weights and all(
        torch.equal(weight, weights[prefix + key]) for key, weight in loaded_weights.items()
    )


@pytest.mark.slow
def test_bart_large_is_trained_in_float32(online, index):
    model = RagToken.from_parts("facebook/dpr-question_encoder-single-nq-base", "facebook/bart-large", index)
    assert dtypes(model) == "float32" and model.generator.first_token == 0
    (-model(model.prepare(QUESTIONS, ANSWERS)).logprob.mean()).backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    optimizer.step()
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert dtypes(Generator.from_pretrained("facebook/bart-base")) == "float32"


@pytest.mark.slow
def test_dpr_and_bert_load(online, caplog):
    with caplog.at_level(logging.WARNING):
        for data in ("single-nq", "multiset"):
            QuestionEncoder.from_pretrained(f"facebook/dpr-question_encoder-{data}-base")
            PassageEncoder.from_pretrained(f"facebook/dpr-ctx_encoder-{data}-base")
        assert not caplog.records
        question, _ = bert_encoders("bert-base-uncased")  # its old name
    assert "cls.predictions" in caplog.text
    tokens = question.tokenize(["the capital of France?"])
    assert question.tokenizer.decode(tokens["input_ids"][0]) == "[CLS] the capital of france? [SEP]"


@pytest.mark.slow
def test_no_thread_looks_for_a_conversion(online):
    """transformers' would look through commits and discussions for one that offers safetensors, or ask for one."""
    before = set(threading.enumerate())
    Generator.from_pretrained("facebook/bart-large")
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
    assert online.asked("/facebook/bart-large/resolve/*/pytorch_model.bin")
    assert not online.asked("*/commits/*") and not online.asked("*discussions*")


# -- encoders by what their repository says ----------------------------------------------------


def test_encoders_open_by_name_and_again_without_the_hub(online, at):
    """A folder in sentence-transformers' format, DPR's, and a BERT, which says nothing of its pooling."""
    name = "sentence-transformers/tiny"
    folder = write_modules(tiny_transformer(online.folder("models", name)), prompts={"query": "who "})
    expected = open_question_encoder(folder)
    assert open_question_encoder(name).fingerprint() == expected.fingerprint()
    with pytest.raises(UserError, match="type bert that does not say how its states become one vector"):
        open_question_encoder("google-bert/bert-base-uncased")
    assert isinstance(open_question_encoder("facebook/dpr-question_encoder-single-nq-base"), QuestionEncoder)
    online.__exit__()
    go_on(at, online)
    assert open_question_encoder(name).fingerprint() == expected.fingerprint()
    with pytest.raises(UserError, match="neither a folder here nor was it downloaded before"):
        open_question_encoder("sentence-transformers/other")


# -- a hub that changes, refuses, is gone -----------------------------------------------------


def test_a_repository_that_changed_is_another_input(online, at, tmp_path):
    name = "facebook/rag-token-nq"
    before = fingerprint(f"hub://{name}")
    assert before == f"hub://{name}@{online.commit(online.folder('models', name))}"
    bert = online.commit(online.folder("models", "google-bert/bert-base-uncased"))
    assert fingerprint("hub://bert-base-uncased") == f"hub://bert-base-uncased@{bert}"  # by its old name
    questions = "hub://google-research-datasets/nq_open/nq_open/train"
    nq = online.commit(online.folder("datasets", "google-research-datasets/nq_open"))
    assert fingerprint(questions) == f"{questions}@{nq}"
    run = Run.open(tmp_path / "run", {"seed": 1}, "seed: 1", [f"hub://{name}"])
    run.begin()
    run.finish({})
    assert Run.open(tmp_path / "run", {"seed": 1}, "seed: 1", [f"hub://{name}"]).finished
    (online.folder("models", name) / "README.md").write_text("another edition")
    go_on(at, online)
    assert fingerprint(f"hub://{name}") != before
    with pytest.raises(UserError, match=f"hub://{name} has changed"):
        Run.open(tmp_path / "run", {"seed": 1}, "seed: 1", [f"hub://{name}"])


def test_a_run_from_before_commits_were_written_down_is_the_same_run(online, tmp_path):
    Run.open(tmp_path / "run", {"seed": 1}, "seed: 1", []).begin()
    models = ["hub://facebook/bart-large"]
    old = Run.open(tmp_path / "run", {"seed": 1}, "seed: 1", models)
    assert old.begun
    with pytest.raises(UserError, match="seed: 1 → 2"):
        Run.open(tmp_path / "run", {"seed": 2}, "seed: 2", models)


def test_of_a_configuration_the_models_are_inputs(online):
    module = {
        "_target_": "rag.training.RagModule",
        "model": {
            "_target_": "rag.model.RagToken",
            "generator": {
                "_target_": "rag.generators.Generator.from_pretrained",
                "path": "facebook/bart-large",
            },
            "retriever": {
                "_target_": "rag.retrievers.DenseRetriever.from_pretrained",
                "question_encoder": "facebook/dpr-question_encoder-single-nq-base",
                "index": "indexes/wikipedia",
            },
        },
        "decoding": {"_target_": "rag.decoding.Decoding", "num_beams": 4},
    }
    assert list(hub.models_in(module)) == [
        "facebook/bart-large",
        "facebook/dpr-question_encoder-single-nq-base",
    ]


def test_offline_after_the_first_failure(online, at, index, caplog):
    RagToken.from_pretrained("facebook/rag-token-nq", index)
    commit = hub.commit("facebook/rag-token-nq")
    online.__exit__()
    go_on(at, online)
    online.requests.clear()
    with caplog.at_level(logging.WARNING):
        RagToken.from_pretrained("facebook/rag-token-nq", index)
        assert hub.commit("facebook/rag-token-nq") == commit
        with pytest.raises(
            UserError, match="facebook/rag-token-base is neither a folder here nor was it downloaded before"
        ):
            RagToken.from_pretrained("facebook/rag-token-base", index)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "cannot be reached" in told[0] and online.address in told[0]


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_waited_for_once(online, at, index, monkeypatch):
    """A host that takes connections and says nothing, as behind a firewall."""
    Generator.from_pretrained("facebook/bart-large")
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    asked = []
    with socket.create_server(("127.0.0.1", 0), backlog=50) as deaf:
        at(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        Generator.from_pretrained("facebook/bart-large")
        deaf.settimeout(0.2)
        with pytest.raises(TimeoutError):
            while True:
                asked.append(deaf.accept())
    for connection, _ in asked:
        connection.close()
    assert len(asked) == 1


def test_what_the_hub_refuses_is_explained(online, index):
    online.gated.add("facebook/bart-large")
    gated = (
        "facebook/bart-large is gated on the hub: request access at http.*/facebook/bart-large, then log in"
    )
    with pytest.raises(UserError, match=gated):
        Generator.from_pretrained("facebook/bart-large")
    with pytest.raises(
        UserError, match="facebook/no-such is neither a folder here nor a repository on the hub"
    ):
        QuestionEncoder.from_pretrained("facebook/no-such")
    online.gated.add("facebook/rag-token-nq")
    for opened in (lambda name: RagToken.from_pretrained(name, index), architecture):
        with pytest.raises(UserError, match="facebook/rag-token-nq is gated on the hub: request access"):
            opened("facebook/rag-token-nq")


@pytest.mark.slow
def test_a_model_is_pushed_and_comes_back(online, at, index, retriever, bart, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_someones")
    model = RagToken(retriever, bart, n_docs=4)
    assert model.push_to_hub("someone/model") == f"{online.address}/someone/model"
    again = RagToken.from_pretrained("someone/model", index)
    assert again.n_docs == 4
    assert again.retriever.question_encoder.fingerprint() == retriever.question_encoder.fingerprint()


def test_pushing_without_a_network_is_told_in_one_sentence(online, at, retriever, bart):
    online.__exit__()
    go_on(at, online)
    with pytest.raises(UserError, match="someone/model was not uploaded .*see that the hub can be reached"):
        RagToken(retriever, bart).push_to_hub("someone/model")
