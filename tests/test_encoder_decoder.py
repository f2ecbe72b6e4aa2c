"""Two pretrained models as encoder and decoder: transformers' EncoderDecoderModel behind the generator's interface."""

from functools import partial
from pathlib import Path

import pytest
import test_decoding as tiny
import torch
import transformers
from conftest import ANSWERS, QUESTIONS, bert_tokenizer, word_tokenizer
from sentence_folders import tiny_transformer
from test_module import batch, module
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertModel,
    EncoderDecoderConfig,
    GenerationConfig,
)

from rag import objectives
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.decoding.shared_contexts import can_share
from rag.errors import UserError
from rag.generators.context import Ragged
from rag.generators.encoder_decoder import EncoderDecoderModel
from rag.generators.reader import new_encoder_decoder
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook, RagModel, RagSequence, RagToken

# encoder, its width, decoder
PAIRS = [
    ("bert", 16, "bert"),
    ("roberta", 16, "bert"),
    ("bert", 24, "roberta"),  # another width: its states are projected
    ("modernbert", 16, "electra"),
    ("distilbert", 16, "xlm-roberta"),
    ("mpnet", 16, "camembert"),
]
NAMES = [f"{encoder}-{width}-{decoder}" for encoder, width, decoder in PAIRS]


def folders(place: Path, encoder: str, width: int, decoder: str) -> tuple[Path, Path]:
    """Two checkpoints with the same tokenizer."""
    wide = {"hidden_size": width} if width != 16 else {}
    return tiny_transformer(place / "encoder", encoder, **wide), tiny_transformer(place / "decoder", decoder)


@pytest.fixture
def generator(tmp_path: Path, request: pytest.FixtureRequest) -> Generator:
    pair = getattr(request, "param", PAIRS[2])
    made = new_encoder_decoder(*folders(tmp_path, *pair), max_context_length=40, max_target_length=8)
    shaken(made.model)
    return made.eval()


def shaken(model: EncoderDecoderModel) -> EncoderDecoderModel:
    """With words that differ: what attends to the context has larger weights, and no word is preferred."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.add_(torch.randn_like(weight) * (1.5 if ".crossattention." in name else 0.3))
            elif weight.shape == (model.config.vocab_size,):
                weight.zero_()
    return model.eval()


# -- made of two -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_both_parts_hold_their_checkpoints_weights(tmp_path, pair):
    encoder, decoder = folders(tmp_path, *pair)
    model = new_encoder_decoder(encoder, decoder).model
    for part, folder in ((model.encoder, encoder), (model.decoder.base_model, decoder)):
        held = part.state_dict()
        source = {
            k: v for k, v in AutoModel.from_pretrained(folder).state_dict().items() if "pooler" not in k
        }
        assert source and all(torch.equal(held[name], weight) for name, weight in source.items())
    layers = [name for name, _ in model.decoder.named_parameters() if ".crossattention." in name]
    weights = dict(model.decoder.named_parameters())
    assert layers  # each starts as its layer's self-attention
    for name in layers:
        assert torch.equal(weights[name], weights[name.replace(".crossattention.", ".attention.")])


def test_a_checkpoints_own_word_prediction_is_kept(tmp_path):
    encoder, decoder = folders(tmp_path, "bert", 16, "bert")
    torch.manual_seed(3)
    whole = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(decoder, is_decoder=True))
    whole.save_pretrained(decoder)
    model = new_encoder_decoder(encoder, decoder).model
    held = model.decoder.state_dict()
    heads = {name: weight for name, weight in whole.state_dict().items() if name.startswith("cls.")}
    assert heads and all(torch.equal(held[name], weight) for name, weight in heads.items())


@pytest.mark.parametrize("generator", PAIRS, ids=NAMES, indirect=True)
def test_saved_it_is_transformers_own_model_and_opens_as_it_was(tmp_path, generator):
    generator.save_pretrained(tmp_path / "saved")
    again = Generator.from_pretrained(tmp_path / "saved").eval()
    assert again.settings == generator.settings and again.start_token == generator.start_token
    weights = generator.state_dict()
    assert weights.keys() == again.state_dict().keys()
    assert all(torch.equal(weights[name], held) for name, held in again.state_dict().items())
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "saved").eval()
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids[:, :3]}
    with torch.no_grad():
        assert_close(theirs(**given).logits, again.model(**given).logits)


def test_a_folder_that_transformers_wrote_opens(tmp_path):
    """With poolers, without start, end and padding in its config or its tokenizer."""
    encoder, decoder = folders(tmp_path, "bert", 16, "bert")
    theirs = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder).eval()
    theirs.save_pretrained(tmp_path / "saved")
    bert_tokenizer().save_pretrained(tmp_path / "saved")
    opened = new_encoder_decoder(path=tmp_path / "saved", max_context_length=40).eval()
    tokenizer = opened.tokenizer
    assert (opened.start_token, opened.end_token) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    ids, mask = opened.assemble(opened.tokenize_questions(QUESTIONS))
    labels, _ = opened.tokenize_targets(ANSWERS)
    given = torch.cat([torch.full_like(labels[:, :1], opened.start_token), labels[:, :-1]], dim=1)
    with torch.no_grad():
        logits = theirs(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=given).logits
        found, _ = opened.token_logprobs(opened.encode(ids, mask), mask, labels)
    assert_close(found, logits.log_softmax(2).gather(2, labels.unsqueeze(2)).squeeze(2))


# -- the generator's interface -------------------------------------------------------------------------


@pytest.mark.parametrize("generator", PAIRS, ids=NAMES, indirect=True)
def test_one_passage_is_transformers_own_forward_with_its_gradients(generator, retriever):
    model = RagToken(retriever, generator, 1).eval()
    inputs = model.prepare(QUESTIONS, ANSWERS)
    rows = retriever(inputs.questions, 1).rows[:, 0]
    tokens = retriever.index.tokens(generator.tokenizer, generator.title_separator, generator.prefix)
    ids, mask = generator.assemble(inputs.generator_questions, Ragged(*tokens.gather(rows)))
    start = inputs.labels.new_full((3, 1), generator.start_token)
    logits = transformers.EncoderDecoderModel.forward(
        generator.model,
        input_ids=ids,
        attention_mask=mask.long(),
        decoder_input_ids=torch.cat([start, inputs.labels[:, :-1]], 1),
    ).logits.log_softmax(dim=2)
    expected = logits.gather(2, inputs.labels.unsqueeze(2)).squeeze(2).masked_fill(~inputs.label_mask, 0)
    found = model(inputs).logprob
    assert_close(found, expected.sum(1), rtol=1e-4, atol=1e-5)
    weights = [weight for weight in generator.parameters() if weight.requires_grad]
    ours = torch.autograd.grad(found.sum(), weights, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(expected.sum(), weights, allow_unused=True)
    for own, other in zip(ours, theirs, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_recomputed_layers_give_the_same_gradients(generator, retriever):
    model = RagToken(retriever, generator.train(), 2)
    for each in generator.modules():
        if isinstance(each, torch.nn.Dropout):
            each.p = 0.0
    inputs = model.prepare(QUESTIONS, ANSWERS)
    weights = list(generator.parameters())
    wanted = torch.autograd.grad(model(inputs).logprob.sum(), weights, allow_unused=True)
    generator.recompute_layers()
    found = torch.autograd.grad(model(inputs).logprob.sum(), weights, allow_unused=True)
    assert sum(each is not None for each in wanted) > len(wanted) / 2
    for own, other in zip(found, wanted, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            assert_close(own, other)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("generator", [PAIRS[1], PAIRS[2], PAIRS[3]], indirect=True)
@torch.no_grad()
def test_answers_are_those_of_transformers_generate(tmp_path, beams, generator):
    model = ClosedBook(generator)
    inputs = model.prepare(QUESTIONS)
    answers = generate(model, model.read(inputs), Decoding(max_new_tokens=6, num_beams=beams))
    generator.save_pretrained(tmp_path / "saved")
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "saved").eval()
    ids, mask = generator.assemble(inputs.generator_questions)
    tokens = theirs.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        generation_config=GenerationConfig(
            max_new_tokens=6,
            num_beams=beams,
            decoder_start_token_id=generator.start_token,
            eos_token_id=generator.end_token,
            pad_token_id=generator.pad_token,
        ),
    )[:, 1:]
    assert len({answer[0].tokens for answer in answers}) > 1
    for found, row in zip(answers, tokens.tolist(), strict=True):
        assert list(found[0].tokens) == row[: len(found[0].tokens)]
        assert set(row[len(found[0].tokens) :]) <= {generator.pad_token}


def in_the_tiny_world(encoder: str = "bert", decoder: str = "bert") -> EncoderDecoderModel:
    """Of test_decoding.py, whose vocabulary has six tokens; an encoder twice as wide as the decoder."""
    sizes = {"vocab_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"max_position_embeddings": 64, "pad_token_id": tiny.PAD, "initializer_range": 0.4}
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        AutoConfig.for_model(encoder, hidden_size=32, **sizes),
        AutoConfig.for_model(decoder, hidden_size=16, **sizes),
        decoder_start_token_id=tiny.BOS,
        pad_token_id=tiny.PAD,
        eos_token_id=tiny.EOS,
    )
    return shaken(EncoderDecoderModel(config))


def world(kind: type[RagModel], *parts: str) -> RagModel:
    return tiny.make(kind, in_the_tiny_world(*parts))


@pytest.mark.parametrize("parts", [("bert", "bert"), ("roberta", "bert"), ("bert", "roberta")])
@pytest.mark.parametrize("kind", [RagSequence, RagToken])
def test_beams_over_everything_equal_exhaustive_scoring(kind, parts):
    model = world(kind, *parts)
    answers = tiny.every_answer(2)
    logprobs = tiny.marginal(model, tiny.QUESTIONS[1], answers)
    assert logprobs.logsumexp(0).item() == pytest.approx(0, abs=1e-5)
    expected = tiny.by_score(answers, logprobs, 8)
    decoding = Decoding(max_new_tokens=2, num_beams=40, num_return_sequences=8, length_penalty=0.0)
    found = tiny.pairs(tiny.ask(model, decoding, [tiny.QUESTIONS[1]])[0])
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-4)


@pytest.mark.parametrize(("kind", "decoding"), tiny.MODES)
def test_every_decoding_gives_what_the_forward_pass_says_one_by_one_or_together(kind, decoding):
    model = world(kind)
    together = tiny.ask(model, decoding)
    alone = [tiny.ask(model, decoding, [question])[0] for question in tiny.QUESTIONS]
    tiny.assert_same(together, alone, rtol=1e-4)
    for question, found in zip(tiny.QUESTIONS, together, strict=True):
        for answer in found:
            tokens = tiny.token_logprobs(model, question, [answer.tokens])[0].sum(dim=1)
            seen = answer.doc_scores > -torch.inf  # under Fast only where the search found it
            assert_close(answer.doc_scores[seen], tokens[seen], rtol=1e-4, atol=1e-5)


def test_beams_share_their_contexts():
    model = in_the_tiny_world()
    cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
    assert can_share(model.get_decoder(), cache)


def test_its_attention_teaches_a_retriever(generator, retriever):
    own = module(
        RagSequence(retriever, generator, 2), retriever_loss=partial(objectives.adist, temperature=0.1)
    )
    own.mean_loss(batch(own.model)).backward()
    assert any(w.grad is not None and w.grad.norm() > 0 for w in retriever.question_encoder.parameters())


# -- mistakes --------------------------------------------------------------------------------------------


def test_kinds_that_cannot_be_a_part_are_named_with_those_that_can(tmp_path):
    encoder, decoder = folders(tmp_path, "bert", 16, "distilbert")
    with pytest.raises(
        UserError,
        match=r"generator.decoder=.* type distilbert, which is no decoder here: bert, camembert, .* are",
    ):
        new_encoder_decoder(encoder, decoder)
    with pytest.raises(
        UserError, match="generator.encoder=.* holds a model of type gpt2, which is no encoder"
    ):
        new_encoder_decoder(tiny_transformer(tmp_path / "gpt", "gpt2"), encoder)
    with pytest.raises(UserError, match="generator.encoder=.*nowhere holds no model"):
        new_encoder_decoder(tmp_path / "nowhere", encoder)


def test_two_vocabularies_are_refused(tmp_path):
    encoder, decoder = folders(tmp_path, "bert", 16, "roberta")
    word_tokenizer().save_pretrained(decoder)
    with pytest.raises(UserError, match="different vocabularies .* give two checkpoints with one vocabulary"):
        new_encoder_decoder(encoder, decoder)


def test_what_is_missing_or_said_twice(tmp_path):
    with pytest.raises(UserError, match="takes two pretrained models: give generator.encoder=… and"):
        new_encoder_decoder(encoder=tmp_path)
    with pytest.raises(UserError, match="generator.path is a model of both parts"):
        new_encoder_decoder(encoder=tmp_path, path=tmp_path)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    encoder, decoder = folders(tmp_path, "bert", 16, "bert")
    for folder in (encoder, decoder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.sep_token = None
        tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="no token to begin, to end or to pad an answer with"):
        new_encoder_decoder(encoder, decoder)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    encoder, decoder = folders(tmp_path, "bert", 16, "bert")
    model = BertModel.from_pretrained(decoder)
    held = {name: weight for name, weight in model.state_dict().items() if "layer.1.output" not in name}
    model.save_pretrained(decoder, state_dict=held)
    with pytest.raises(UserError, match="lacks .* weights .*layer.1.output"):
        new_encoder_decoder(encoder, decoder)
