"""Section 2.3: contexts put together from tokens; log-probabilities a vocabulary is never held whole."""

import logging

import numpy as np
import pytest
import torch
from conftest import (
    PASSAGES,
    QUESTIONS,
    byte_tokenizer,
    t5_tokenizer,
    tiny_bart,
    tiny_t5,
    word_tokenizer,
)
from torch.testing import assert_close
from transformers import PegasusConfig, PegasusForConditionalGeneration

import rag.generators.output_layer
import rag.generators.seq2seq
from rag.errors import UserError
from rag.generators.context import Ragged, positions, special_tokens, token_rows
from rag.generators.seq2seq import Generator

TOKENIZERS = {"words": word_tokenizer, "bytes": byte_tokenizer, "t5": t5_tokenizer}
MODELS = ["bart", "t5", "t5 untied", "pegasus"]


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]()


def model_of(name: str, vocabulary: int):
    if name == "bart":
        return tiny_bart(vocabulary)
    if name == "pegasus":
        config = PegasusConfig(
            vocab_size=vocabulary,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=64,
            init_std=0.3,
        )
        return PegasusForConditionalGeneration(config).eval()
    return tiny_t5(vocabulary, tie_word_embeddings=name == "t5", scale_decoder_outputs=name == "t5")


@pytest.fixture(params=MODELS)
def generator(request) -> Generator:
    """A tiny generator of each kind: tied and scaled outputs, untied ones, a bias over the vocabulary."""
    tokenizer = t5_tokenizer() if request.param.startswith("t5") else word_tokenizer()
    return Generator(model_of(request.param, len(tokenizer)), tokenizer)


def plain(tokenizer, max_context_length: int = 300, **settings) -> Generator:
    return Generator(tiny_bart(len(tokenizer)), tokenizer, max_context_length, **settings)


def passages_of(tokenizer, separator: str = " / ") -> Ragged:
    return Ragged.of(token_rows(tokenizer, [title + separator + text for title, text in PASSAGES]))


# -- contexts ---------------------------------------------------------------------------------


def test_a_context_is_the_tokenisation_of_the_joined_string(tokenizer):
    """Tokens of "title / text", then those of " // question": those of the whole, special ones included."""
    generator = plain(tokenizer)
    pairs = [(p, q) for p in PASSAGES for q in [*QUESTIONS, "who?", "  two  spaces ", "A/B // C"]]
    questions = generator.tokenize_questions([question for _, question in pairs])
    passages = Ragged.of(token_rows(tokenizer, [f"{title} / {text}" for (title, text), _ in pairs]))
    ids, mask = generator.assemble(questions, passages)
    whole = tokenizer(
        [f"{title} / {text} // {question}" for (title, text), question in pairs],
        padding=True,
        return_tensors="pt",
    )
    assert torch.equal(ids, whole["input_ids"])
    assert torch.equal(mask, whole["attention_mask"].bool())


def test_closed_book_is_the_tokenisation_of_the_question(tokenizer):
    generator = plain(tokenizer)
    ids, mask = generator.assemble(generator.tokenize_questions(QUESTIONS, separator=False))
    whole = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    assert torch.equal(ids, whole["input_ids"])
    assert torch.equal(mask, whole["attention_mask"].bool())


def test_other_separators():
    tokenizer = byte_tokenizer()
    generator = plain(tokenizer, title_separator=" : ", passage_separator=" ? ")
    ids, _ = generator.assemble(
        generator.tokenize_questions(["who"]), Ragged.of(token_rows(tokenizer, ["a : b"]))
    )
    assert ids.tolist() == [tokenizer("a : b ? who")["input_ids"]]


@pytest.mark.parametrize("name", ["max_context_length", "max_target_length"])
@pytest.mark.parametrize("length", [0, -3, 2.5, "many", None, True])
def test_a_length_that_is_none_is_refused(tokenizer, name, length):
    with pytest.raises(UserError, match=f"generator.{name}={length} is no length: give a whole number"):
        plain(tokenizer, **{name: length})


@pytest.mark.parametrize("length", [12, 16, 20, 24])
def test_the_passage_is_cut_never_the_question(length):
    tokenizer = word_tokenizer()
    generator = plain(tokenizer, max_context_length=length)
    questions = generator.tokenize_questions(QUESTIONS[:1] * len(PASSAGES))
    ids, mask = generator.assemble(questions, passages_of(tokenizer))
    tail = [*token_rows(tokenizer, [" // " + QUESTIONS[0]])[0], tokenizer.eos_token_id]
    for row, real, (title, text) in zip(ids.tolist(), mask.tolist(), PASSAGES, strict=True):
        row = row[: sum(real)]
        head = token_rows(tokenizer, [f"{title} / {text}"])[0]
        kept = min(len(head), length - 1 - len(tail))
        assert row == [tokenizer.bos_token_id, *head[:kept], *tail]
    assert ids.shape[1] == length


def test_a_question_that_fills_the_context_leaves_the_passage_out_and_a_longer_one_is_refused():
    tokenizer = word_tokenizer()
    needed = len(token_rows(tokenizer, [" // " + QUESTIONS[0]])[0]) + 2
    exact = plain(tokenizer, max_context_length=needed)
    ids, _ = exact.assemble(exact.tokenize_questions(QUESTIONS[:1]), Ragged.of([[7, 7, 7]]))
    assert ids.tolist() == [tokenizer(" // " + QUESTIONS[0])["input_ids"]]
    short = plain(tokenizer, max_context_length=needed - 1)
    with pytest.raises(
        UserError, match=f"a question of {needed - 2} tokens.*context of {needed - 1}: shorten it"
    ):
        short.assemble(short.tokenize_questions(QUESTIONS[:1]), Ragged.of([[7, 7, 7]]))


def test_the_context_is_no_longer_than_the_model_has_positions_for():
    generator = plain(word_tokenizer(), max_context_length=300)
    assert generator.max_context_length == 128


def test_questions_in_lower_case_where_the_checkpoint_wants_them():
    tokenizer = byte_tokenizer()
    for lower, question in [(False, "Who wrote Berlin?"), (True, "who wrote berlin?")]:
        generator = plain(tokenizer, lowercase_questions=lower)
        rows = generator.tokenize_questions(["Who wrote Berlin?"])
        assert rows.tokens.tolist() == token_rows(tokenizer, [" // " + question])[0]


@pytest.mark.parametrize("times", [1, 3])
def test_ragged_rows(times):
    rows = [[1, 2, 3], [], [4], [5, 6]]
    repeated = Ragged.of(rows).repeat(times)
    expected = [row for row in rows for _ in range(times)]
    assert repeated.tokens.tolist() == [token for row in expected for token in row]
    assert repeated.lengths.tolist() == [len(row) for row in expected]
    assert positions(np.array([5, 9]), np.array([3, 2])).tolist() == [5, 6, 7, 9, 10]


def test_special_tokens():
    assert special_tokens(word_tokenizer()) == ([0], [2])
    assert special_tokens(t5_tokenizer()) == ([], [1])


# -- targets ----------------------------------------------------------------------------------


def test_targets_end_with_end_of_sequence_and_hold_no_start_token():
    tokenizer = word_tokenizer()
    labels, mask = plain(tokenizer).tokenize_targets(["the Tiber", "Paris", ""])
    the, tiber, paris = (tokenizer.convert_tokens_to_ids(word) for word in ("the", "Tiber", "Paris"))
    assert labels.tolist() == [[the, tiber, 2], [paris, 2, 1], [2, 1, 1]]
    assert mask.tolist() == [[True, True, True], [True, True, False], [True, False, False]]


def test_a_long_target_is_cut_before_its_end_of_sequence_and_one_warning_says_so(caplog):
    tokenizer = word_tokenizer()
    generator = plain(tokenizer, max_target_length=3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            labels, _ = generator.tokenize_targets(["the river in Italy"])
            assert labels.tolist() == [[*token_rows(tokenizer, ["the river"])[0], 2]]
    assert [record.getMessage() for record in caplog.records] == [
        "a target of 5 tokens was cut to generator.max_target_length = 3; later ones are cut silently"
    ]


# -- log-probabilities ------------------------------------------------------------------------


def scored(generator: Generator, want_mean: bool = False):
    ids, mask = generator.assemble(generator.tokenize_questions(QUESTIONS, separator=False))
    labels, real = generator.tokenize_targets(["the Tiber", "Paris, the capital", ""])
    logprobs, means = generator.token_logprobs(generator.encode(ids, mask), mask, labels, want_mean)
    return ids, mask, labels, real, logprobs, means


def reference_logits(generator: Generator, ids, mask, labels):
    """The model's own forward pass, with its own shift of the labels."""
    inputs = torch.cat([labels.new_full((len(labels), 1), generator.start_token), labels[:, :-1]], dim=1)
    return generator.model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=inputs).logits


def test_log_probabilities_are_those_of_the_models_own_forward_pass(generator):
    ids, mask, labels, real, logprobs, means = scored(generator, want_mean=True)
    expected = reference_logits(generator, ids, mask, labels).log_softmax(dim=-1)
    assert_close(logprobs[real], expected.gather(2, labels.unsqueeze(2)).squeeze(2)[real])
    assert_close(means[real], expected.mean(dim=2)[real])


def test_the_loss_is_the_models_own(generator):
    """Hugging Face's cross-entropy over the same labels, padding as −100: the start token is the same."""
    ids, mask, labels, real, logprobs, _ = scored(generator)
    loss = generator.model(
        input_ids=ids, attention_mask=mask.long(), labels=labels.masked_fill(~real, -100)
    ).loss
    assert_close(-logprobs[real].mean(), loss)


def test_no_mean_unless_asked_for(generator):
    assert scored(generator)[-1] is None


@pytest.mark.parametrize("at_once", [1, 150, 10**9])
@pytest.mark.parametrize("want_mean", [False, True])
def test_scoring_in_chunks_changes_neither_value_nor_gradient(generator, monkeypatch, at_once, want_mean):
    generator.model.double()
    ids, mask, labels, real, _, _ = scored(generator)
    expected = reference_logits(generator, ids, mask, labels).log_softmax(dim=-1)
    weights = torch.randn(labels.shape).double() * real
    mean_weights = torch.randn(labels.shape).double() * real * want_mean
    targets = expected.gather(2, labels.unsqueeze(2)).squeeze(2)
    ((targets * weights).sum() + (expected.mean(dim=2) * mean_weights).sum()).backward()
    trained = {name: w for name, w in generator.model.named_parameters() if w.requires_grad}
    wanted = {name: weight.grad.clone() for name, weight in trained.items()}
    generator.model.zero_grad()

    monkeypatch.setattr(rag.generators.output_layer, "LOGITS_AT_ONCE", at_once)
    *_, logprobs, means = scored(generator, want_mean)
    assert_close(logprobs[real], targets[real])
    loss = (logprobs * weights).sum()
    if want_mean:
        assert_close(means[real], expected.mean(dim=2)[real])
        loss = loss + (means * mean_weights).sum()
    loss.backward()
    for name, weight in trained.items():
        assert_close(weight.grad, wanted[name], msg=name)


def test_chunks_never_hold_more_logits_than_allowed(monkeypatch):
    """The output layer sees at most LOGITS_AT_ONCE / V rows at a time, forward and backward."""
    tokenizer = word_tokenizer()
    generator = Generator(tiny_bart(len(tokenizer)), tokenizer)
    seen: list[int] = []
    generator.model.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[0]))
    monkeypatch.setattr(rag.generators.output_layer, "LOGITS_AT_ONCE", 2 * len(tokenizer))
    *_, logprobs, _ = scored(generator)
    logprobs.sum().backward()
    assert set(seen) == {1, 2} or set(seen) == {2}
    assert sum(seen) == 2 * logprobs.numel()  # once forward, once again backward


@pytest.mark.parametrize("share", [0, 0.5])
def test_what_a_step_may_not_keep_is_computed_again_and_changes_nothing(generator, monkeypatch, share):
    """Contexts are encoded, and answers decoded, in pieces: all of them, or those beyond the limit, once more."""
    generator.model.double()
    encoded: list[int] = []
    generator.model.get_encoder().register_forward_pre_hook(
        lambda _, args, given: encoded.append(len(given["attention_mask"])), with_kwargs=True
    )

    def gradients() -> dict[str, torch.Tensor]:
        generator.model.zero_grad()
        *_, real, logprobs, _ = scored(generator)
        logprobs[real].sum().backward()
        named_weights = generator.model.named_parameters()
        return {name: w.grad.clone() for name, w in named_weights if w.grad is not None}

    whole = gradients()
    assert encoded == [3]
    _, mask, *_ = scored(generator)
    encoded.clear()
    monkeypatch.setattr(
        rag.generators.seq2seq, "KEPT_ON_CPU", int(share * generator._kept_by(int(mask.sum())))
    )
    monkeypatch.setattr(rag.generators.seq2seq, "ENCODED_AT_ONCE_ON_CPU", 1)  # one context a piece
    in_pieces = gradients()
    assert sum(encoded) == 6 if share == 0 else 3 < sum(encoded) < 6
    assert whole.keys() == in_pieces.keys()
    for name, gradient in whole.items():
        assert_close(in_pieces[name], gradient, msg=name)


def test_padding_of_contexts_and_targets_changes_nothing(generator):
    generator.model.double()
    *_, real, logprobs, _ = scored(generator)
    for row, question in enumerate(QUESTIONS):
        ids, mask = generator.assemble(generator.tokenize_questions([question], separator=False))
        labels, own_mask = generator.tokenize_targets([["the Tiber", "Paris, the capital", ""][row]])
        alone, _ = generator.token_logprobs(generator.encode(ids, mask), mask, labels)
        assert_close(alone[own_mask], logprobs[row][real[row]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_normalised_in_float32(dtype):
    tokenizer = word_tokenizer()
    generator = Generator(tiny_bart(len(tokenizer)).to(dtype), tokenizer)
    ids, mask, labels, real, logprobs, means = scored(generator, want_mean=True)
    expected = reference_logits(generator, ids, mask, labels).float().log_softmax(dim=-1)
    assert logprobs.dtype == means.dtype == torch.float32
    assert_close(
        logprobs[real], expected.gather(2, labels.unsqueeze(2)).squeeze(2)[real], rtol=1e-2, atol=2e-2
    )


# -- what a user can get wrong ----------------------------------------------------------------


def test_tokenizer_of_another_vocabulary():
    tokenizer = word_tokenizer()
    size = len(tokenizer)
    with pytest.raises(
        UserError, match=f"the tokenizer has {size} tokens but the generator only 30 embeddings"
    ):
        Generator(tiny_bart(30), tokenizer)


def test_tokenizer_without_a_padding_token():
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="no end-of-sequence or no padding token"):
        Generator(tiny_bart(len(tokenizer)), tokenizer)


def test_model_without_a_start_token():
    tokenizer = word_tokenizer()
    model = tiny_bart(len(tokenizer))
    model.config.decoder_start_token_id = None
    with pytest.raises(UserError, match="no decoder_start_token_id"):
        Generator(model, tokenizer)


def test_save_and_load(tmp_path, generator):
    generator.save_pretrained(tmp_path / "generator")
    loaded = Generator.from_pretrained(tmp_path / "generator", max_target_length=19)
    loaded.eval()
    assert loaded.max_target_length == 19
    assert_close(scored(loaded)[4], scored(generator)[4], rtol=0, atol=0)


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(UserError, match="holds no sequence-to-sequence model with its tokenizer"):
        Generator.from_pretrained(tmp_path)


def test_settings_travel_with_the_folder(tmp_path):
    tokenizer = byte_tokenizer()
    settings = {
        "max_target_length": 11,
        "passage_separator": " ? ",
        "prefix": " ",
        "lowercase_questions": True,
        "question_first": True,
        "quote": True,
    }
    plain(tokenizer, 77, **settings).save_pretrained(tmp_path / "generator")
    loaded = Generator.from_pretrained(tmp_path / "generator", max_target_length=12)
    assert loaded.settings == settings | {
        "max_context_length": 77,
        "max_target_length": 12,
        "title_separator": " / ",
    }
