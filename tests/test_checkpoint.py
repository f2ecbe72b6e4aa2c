"""Checkpoints in and out: what transformers writes is read, and what is written here transformers reads."""

import json
import logging
import shutil

import pytest
import torch
from conftest import (
    ANSWERS,
    byte_tokenizer,
    t5_tokenizer,
    tiny_bart,
    tiny_question_encoder,
    tiny_t5,
    word_tokenizer,
)
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    RagTokenizer,
)

from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook, RagSequence, RagToken

KINDS = [
    pytest.param(RagToken, RagTokenForGeneration, id="token"),
    pytest.param(RagSequence, RagSequenceForGeneration, id="sequence"),
]
QUESTIONS = ["What is the capital of Italy", "which river runs through Rome"]


def write_theirs(folder, reference_class, encoder_tokenizer, tokenizer, safe: bool = True, **settings):
    """A checkpoint as transformers writes facebook/rag-*: its own class, config and tokenizer folders."""
    encoder = tiny_question_encoder(len(encoder_tokenizer))
    bart = tiny_bart(len(tokenizer))
    config = RagConfig.from_question_encoder_generator_configs(
        encoder.config, bart.config, retrieval_vector_size=16, n_docs=3, max_combined_length=40, **settings
    )
    theirs = reference_class(config=config, question_encoder=encoder, generator=bart).eval()
    theirs.save_pretrained(folder)
    RagTokenizer(encoder_tokenizer, tokenizer).save_pretrained(str(folder))
    if not safe:  # the released ones are older than safetensors
        weights = load_file(folder / "model.safetensors")
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return theirs


def their_loss(theirs, model, batch):
    """transformers' loss over the contexts and scores of our batch."""
    contexts = model.retriever(batch.questions, model.n_docs)
    tokens = model.retriever.index.tokens(
        model.generator.tokenizer, model.generator.title_separator, model.generator.prefix
    )
    questions = batch.generator_questions
    passages = type(questions)(*tokens.gather(contexts.rows.reshape(-1)))
    ids, mask = model.generator.assemble(questions.repeat(model.n_docs), passages)
    labels = batch.labels.masked_fill(~batch.label_mask, model.generator.pad_token)
    labels = torch.nn.functional.pad(labels, (1, 0), value=model.generator.start_token)
    encoded = theirs.rag.question_encoder(**batch.questions.tokens).pooler_output
    vectors = torch.from_numpy(model.retriever.index.vectors(contexts.rows))
    return theirs(
        context_input_ids=ids,
        context_attention_mask=mask.long(),
        doc_scores=torch.einsum("bd,bkd->bk", encoded, vectors),
        labels=labels,
        n_docs=model.n_docs,
    ).loss


# -- in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize(("model_class", "reference_class"), KINDS)
def test_what_transformers_wrote_is_read(
    model_class, reference_class, safe, tmp_path, index, question_encoder
):
    theirs = write_theirs(tmp_path, reference_class, question_encoder.tokenizer, word_tokenizer(), safe)
    model = model_class.from_pretrained(tmp_path, index).eval()
    assert model.n_docs == 3 and model.generator.max_context_length == 40
    batch = model.prepare(QUESTIONS, ANSWERS[:2])
    assert_close(-model(batch).logprob, their_loss(theirs, model, batch), rtol=1e-5, atol=0)


def test_a_released_configs_output_flags_change_nothing(tmp_path, index, question_encoder):
    """Both parts' configs of facebook/rag-*-nq hold `return_dict: false`: transformers would return tuples."""
    theirs = write_theirs(tmp_path, RagTokenForGeneration, question_encoder.tokenizer, word_tokenizer())
    config = json.loads((tmp_path / "config.json").read_text())
    flags = {
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "use_cache": False,
    }
    for part in (config, config["question_encoder"], config["generator"]):
        part.update(flags)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for model_class in (RagToken, RagSequence):
        model = model_class.from_pretrained(tmp_path, index).eval()
        batch = model.prepare(QUESTIONS, ANSWERS[:2])
        if model_class is RagToken:
            assert_close(-model(batch).logprob, their_loss(theirs, model, batch), rtol=1e-5, atol=0)
        answers = generate(model, model.read(batch), Decoding(max_new_tokens=5))
        assert len(answers) == 2
    assert model.generator.model.config.use_cache  # decoding keeps keys and values, whatever was saved
    model.retriever.question_encoder.save_pretrained(tmp_path / "questions")
    model.generator.save_pretrained(tmp_path / "generator")
    for part in ("questions", "generator"):
        config = json.loads((tmp_path / part / "config.json").read_text()) | flags
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    parts = model_class.from_parts(tmp_path / "questions", tmp_path / "generator", index, n_docs=3).eval()
    parts.generator.prefix = model.generator.prefix
    assert_close(parts(batch).logprob, model(batch).logprob)


def test_settings_go_before_those_of_the_checkpoint(tmp_path, index, question_encoder):
    write_theirs(tmp_path, RagTokenForGeneration, question_encoder.tokenizer, word_tokenizer())
    model = RagToken.from_pretrained(
        tmp_path, index.folder, n_docs=2, trainable=False, max_target_length=9, max_context_length=33
    )
    assert (model.n_docs, model.retriever.trainable) == (2, False)
    assert (model.generator.max_target_length, model.generator.max_context_length) == (9, 33)
    assert RagToken.from_pretrained(tmp_path, index).generator.max_target_length == 25


def test_separators_and_prefix_come_from_the_config(tmp_path, index, question_encoder):
    """facebook/rag-* begin a context with a space: "Paris" is then another token of BART's."""
    tokenizer = byte_tokenizer()
    folder = tmp_path / "spaced"
    write_theirs(
        folder,
        RagTokenForGeneration,
        question_encoder.tokenizer,
        tokenizer,
        prefix=" ",
        title_sep=" : ",
        doc_sep=" ? ",
    )
    model = RagToken.from_pretrained(folder, index, max_context_length=120)
    batch = model.prepare(["who"])
    retrieved = model.retriever(batch.questions, 1)
    seen = []
    embeddings = model.generator.model.get_encoder().embed_tokens
    embeddings.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model.read_retrieved(batch, retrieved)
    passage = index.passages[int(retrieved.rows[0, 0])]
    assert seen[0].flatten().tolist() == tokenizer(f" {passage.title} : {passage.text} ? who")["input_ids"]


def test_transformers_checkpoints_read_questions_in_lower_case(tmp_path, index, question_encoder):
    """Where the question encoder's tokenizer is uncased, as facebook/rag-*'s; not where it keeps capitals."""
    cased = word_tokenizer()
    write_theirs(tmp_path / "uncased", RagTokenForGeneration, question_encoder.tokenizer, cased)
    write_theirs(tmp_path / "cased", RagTokenForGeneration, cased, cased)
    uncased = RagToken.from_pretrained(tmp_path / "uncased", index)
    assert uncased.generator.lowercase_questions
    lower = uncased.prepare(["What is ROME"]).generator_questions
    assert lower.tokens.tolist() == cased(" // what is rome", add_special_tokens=False)["input_ids"]
    assert not RagToken.from_pretrained(tmp_path / "cased", index).generator.lowercase_questions
    uncased.generator.lowercase_questions = False  # what was trained here says so in its own config
    uncased.save_pretrained(tmp_path / "ours")
    assert not RagToken.from_pretrained(tmp_path / "ours", index).generator.lowercase_questions


def test_from_parts(tmp_path, index, question_encoder, bart):
    question_encoder.save_pretrained(tmp_path / "encoder")
    bart.save_pretrained(tmp_path / "bart")
    model = RagSequence.from_parts(
        tmp_path / "encoder", tmp_path / "bart", index, n_docs=4, max_target_length=7
    )
    assert model.n_docs == 4 and model.generator.max_target_length == 7
    assert model.retriever.question_encoder.fingerprint() == question_encoder.fingerprint()
    assert not model.generator.lowercase_questions


# -- out -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_class", "reference_class"), KINDS)
def test_what_is_written_transformers_reads(model_class, reference_class, tmp_path, retriever, bart):
    bart.model.generation_config.forced_bos_token_id = None
    model = model_class(retriever, bart, n_docs=3)
    model.save_pretrained(tmp_path / "model")
    theirs, report = reference_class.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert theirs.config.architectures == [reference_class.__name__]
    assert (theirs.config.n_docs, theirs.config.retrieval_vector_size) == (3, 16)
    assert (theirs.config.title_sep, theirs.config.doc_sep) == (" / ", " // ")
    batch = model.prepare(QUESTIONS, ANSWERS[:2])
    assert_close(-model(batch).logprob, their_loss(theirs.eval(), model, batch), rtol=1e-5, atol=0)
    tokenizers = RagTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizers.generator("Paris / a")["input_ids"] == bart.tokenizer("Paris / a")["input_ids"]
    assert tokenizers.question_encoder("Rome") == retriever.question_encoder.tokenizer("Rome")


def test_tied_weights_are_written_once(tmp_path, retriever, bart):
    RagToken(retriever, bart).save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(weight.shape == bart.model.lm_head.weight.shape for weight in weights.values()) == 1
    assert all(name.startswith(("rag.question_encoder.", "rag.generator.")) for name in weights)


@pytest.mark.parametrize("kind", ["bart", "t5", "t5 untied"])
def test_there_and_back(kind, tmp_path, retriever, index):
    """Weights, K, lengths, separators and special tokens come back; the likelihood is the same to the last bit."""
    tokenizer = word_tokenizer() if kind == "bart" else t5_tokenizer()
    tied = kind != "t5 untied"
    network = (
        tiny_bart(len(tokenizer))
        if kind == "bart"
        else tiny_t5(len(tokenizer), tie_word_embeddings=tied, scale_decoder_outputs=tied)
    )
    if kind == "bart":
        network.generation_config.forced_bos_token_id = 0
    settings = {"max_context_length": 50, "max_target_length": 19, "title_separator": " : ", "prefix": " "}
    model = RagSequence(retriever, Generator(network, tokenizer, **settings), n_docs=2)
    batch = model.prepare(QUESTIONS, ANSWERS[:2])
    before = model(batch).logprob
    model.save_pretrained(tmp_path / "model")
    loaded = RagSequence.from_pretrained(tmp_path / "model", index).eval()
    assert loaded.n_docs == 2 and loaded.generator.first_token == model.generator.first_token
    assert {name: getattr(loaded.generator, name) for name in settings} == settings
    assert torch.equal(loaded(loaded.prepare(QUESTIONS, ANSWERS[:2])).logprob, before)


def test_saving_again_replaces_the_folder(tmp_path, retriever, bart, index):
    model = RagToken(retriever, bart, n_docs=2)
    model.save_pretrained(tmp_path / "model")
    model.n_docs = 4
    model.save_pretrained(tmp_path / "model")
    assert RagToken.from_pretrained(tmp_path / "model", index).n_docs == 4
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_passage_encoder_the_checkpoint_belongs_to_is_remembered(tmp_path, retriever, bart, index):
    retriever.question_encoder.model.config.passage_encoder = "0123456789abcdef"
    RagToken(retriever, bart).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="weights 0123456789abcdef"):
        RagToken.from_pretrained(tmp_path / "model", index)


# -- what a user can get wrong ---------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, retriever, bart):
    RagToken(retriever, bart).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_missing_weights_are_named(saved, index):
    name = "rag.question_encoder.question_encoder.bert_model.embeddings.LayerNorm.weight"
    edit(saved, lambda weights: weights.pop(name))
    with pytest.raises(UserError, match=f"lacks the weight {name}: restore it"):
        RagToken.from_pretrained(saved, index)
    edit(saved, lambda weights: [weights.pop(key) for key in list(weights) if "layers.1" in key])
    with pytest.raises(UserError, match=r"lacks \d+ weights \(rag.generator.model.decoder.layers.1"):
        RagToken.from_pretrained(saved, index)


def test_weights_of_another_shape_are_named(saved, index):
    name = "rag.generator.model.encoder.layers.0.fc1.bias"
    edit(saved, lambda weights: weights.update({name: torch.zeros(5)}))
    with pytest.raises(UserError, match=f"holds the weight {name} in another shape"):
        RagToken.from_pretrained(saved, index)


def test_extra_weights_are_named_once_and_left_out(saved, index, caplog):
    edit(saved, lambda weights: weights.update({"rag.ctx_encoder.weight": torch.zeros(5)}))
    with caplog.at_level(logging.WARNING):
        RagToken.from_pretrained(saved, index)
    assert [record.getMessage() for record in caplog.records] == [
        f"{saved} holds the weight rag.ctx_encoder.weight, which this model does not use: ignored"
    ]


def test_berts_pooler_is_no_news(saved, index, caplog):
    """The released DPR encoders hold one, which DPR does not use."""
    name = "rag.question_encoder.question_encoder.bert_model.pooler.dense.bias"
    edit(saved, lambda weights: weights.update({name: torch.zeros(16)}))
    with caplog.at_level(logging.WARNING):
        RagToken.from_pretrained(saved, index)
    assert not caplog.records


def test_parts_with_missing_weights_are_refused_too(tmp_path, index, question_encoder, bart):
    question_encoder.save_pretrained(tmp_path / "encoder")
    bart.save_pretrained(tmp_path / "bart")
    edit(tmp_path / "bart", lambda weights: weights.pop("model.encoder.layers.0.fc1.bias"))
    with pytest.raises(UserError, match="lacks the weight model.encoder.layers.0.fc1.bias"):
        RagToken.from_parts(tmp_path / "encoder", tmp_path / "bart", index)
    edit(tmp_path / "encoder", dict.clear)
    with pytest.raises(UserError, match=r"lacks \d+ weights \(question_encoder"):
        RagToken.from_parts(tmp_path / "encoder", tmp_path / "bart", index)


def test_a_checkpoint_of_another_kind_is_named(tmp_path, index, question_encoder, bart):
    """Not "lacks 37 weights: restore it": the kind that was found and the kinds that are read."""
    question_encoder.save_pretrained(tmp_path / "questions")
    bart.save_pretrained(tmp_path / "bart")
    with pytest.raises(
        UserError,
        match="questions holds a model of type dpr, which is not a sequence-to-sequence model: use one such as bart",
    ):
        Generator.from_pretrained(tmp_path / "questions")
    with pytest.raises(
        UserError, match="bart holds a model of type bart: a DPRQuestionEncoder is read from type dpr alone"
    ):
        QuestionEncoder.from_pretrained(tmp_path / "bart")
    with pytest.raises(
        UserError,
        match=r"questions holds a DPRQuestionEncoder, which lacks \d+ weights .* of a DPRContextEncoder: give a "
        "checkpoint of a DPRContextEncoder",
    ):
        PassageEncoder.from_pretrained(tmp_path / "questions")


def test_a_bin_file_that_holds_more_than_tensors_is_refused(saved, index, capsys):
    (saved / "model.safetensors").unlink()

    class Harmful:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"rag.generator.final_logits_bias": Harmful()}, saved / "pytorch_model.bin")
    with pytest.raises(UserError, match="hold more than tensors, and could run code"):
        RagToken.from_pretrained(saved, index)
    assert "code ran" not in capsys.readouterr().out


def test_folders_that_hold_something_else(tmp_path, index, bart, question_encoder):
    with pytest.raises(UserError, match="holds no model, not a RAG checkpoint.*from_parts"):
        RagToken.from_pretrained(tmp_path, index)
    with pytest.raises(UserError, match="nowhere holds no complete RAG checkpoint"):
        RagToken.from_pretrained(tmp_path / "nowhere", index)
    bart.save_pretrained(tmp_path / "bart")
    with pytest.raises(UserError, match="holds a model of type bart, not a RAG checkpoint.*from_parts"):
        RagToken.from_pretrained(tmp_path / "bart", index)
    with pytest.raises(UserError, match="holds no question encoder with its tokenizer"):
        RagToken.from_parts(tmp_path, tmp_path / "bart", index)


def test_a_checkpoint_without_tokenizers(saved, index):
    shutil.move(saved / "generator_tokenizer", saved / "away")
    with pytest.raises(UserError, match="the generator's tokenizer has an empty vocabulary"):
        RagToken.from_pretrained(saved, index)
    shutil.move(saved / "away", saved / "generator_tokenizer")
    shutil.rmtree(saved / "question_encoder_tokenizer")
    with pytest.raises(UserError, match="the DPRQuestionEncoder's tokenizer has an empty vocabulary"):
        RagToken.from_pretrained(saved, index)


def test_a_config_that_is_no_json(saved, index):
    (saved / "config.json").write_text("{")
    with pytest.raises(UserError, match="holds no complete RAG checkpoint"):
        RagToken.from_pretrained(saved, index)


def test_a_hub_name_without_a_hub(index):
    asked = "facebook/rag-token-nq is neither a folder here nor was it downloaded .* go online, without HF_HUB_OFFLINE"
    with pytest.raises(UserError, match=asked):
        RagToken.from_pretrained("facebook/rag-token-nq", index)


def test_the_other_models_checkpoint_is_used_with_a_warning(saved, index, caplog):
    with caplog.at_level(logging.WARNING):
        RagSequence.from_pretrained(saved, index)
        RagToken.from_pretrained(saved, index)
    assert [record.getMessage() for record in caplog.records] == [
        f"{saved} was trained as RagTokenForGeneration and is used as RagSequenceForGeneration"
    ]


def test_closed_book_does_not_fit_the_format(tmp_path, bart):
    with pytest.raises(UserError, match="without a question encoder does not fit this format"):
        ClosedBook(bart).save_pretrained(tmp_path / "model")


def test_pushing_without_a_hub(retriever, bart):
    with pytest.raises(UserError, match="someone/model was not uploaded .*HF_HUB_OFFLINE is not set"):
        RagToken(retriever, bart).push_to_hub("someone/model")


def test_config_names_the_format(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "rag" and config["architectures"] == ["RagTokenForGeneration"]
    assert config["generator"]["model_type"] == "bart" and config["question_encoder"]["model_type"] == "dpr"
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        "generation_config.json",
        "generator_tokenizer",
        "model.safetensors",
        "question_encoder_tokenizer",
    ]
