"""The LSTM generator: its formulas written out, and the same interface as BART's."""

import math

import pytest
import pytorch_lightning as pl
import torch
from conftest import ANSWERS, QUESTIONS, word_tokenizer
from torch.testing import assert_close
from torch.utils.data import DataLoader

from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.generators.lstm import LstmForConditionalGeneration, new_model
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook, RagSequence, RagToken
from rag.scratch.models import new_lstm
from rag.tasks.example import Example
from rag.training.module import RagModule
from rag.training.optimization import Optimization


@pytest.fixture
def generator() -> Generator:
    tokenizer = word_tokenizer()
    network = new_model(tokenizer, width=12, layers=2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.uniform_(-0.7, 0.7)
    return Generator(network, tokenizer).eval()


def written_out(network: LstmForConditionalGeneration, context: list[int], inputs: list[int]):
    """Logits (T, V) and attention (T, L) of one context, cell by cell in Python's order."""

    def cell(lstm, layer: str, x, state):
        h, c = state
        gates = getattr(lstm, f"weight_ih_{layer}") @ x + getattr(lstm, f"bias_ih_{layer}")
        gates = gates + getattr(lstm, f"weight_hh_{layer}") @ h + getattr(lstm, f"bias_hh_{layer}")
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    width = network.config.hidden_size
    rows = [network.embeddings.weight[token] * math.sqrt(width) for token in context]
    for layer in range(2):
        both = []
        for suffix, order in (("", rows), ("_reverse", rows[::-1])):
            state, outputs = (torch.zeros(width), torch.zeros(width)), []
            for x in order:
                state = cell(network.encoder.lstm, f"l{layer}{suffix}", x, state)
                outputs.append(state[0])
            both.append(outputs if not suffix else outputs[::-1])
        rows = [torch.cat(pair) for pair in zip(*both, strict=True)]
    states = torch.stack([network.encoder.project(row) for row in rows])

    hs, cs = torch.tanh(network.decoder.start(states.mean(dim=0))).view(2, 2, width)
    layers = [(hs[layer], cs[layer]) for layer in range(2)]
    logits, attention = [], []
    for token in inputs:
        x = network.embeddings.weight[token] * math.sqrt(width)
        for layer in range(2):
            layers[layer] = cell(network.decoder.lstm, f"l{layer}", x, layers[layer])
            x = layers[layer][0]
        alpha = (states @ network.decoder.attend(x)).softmax(dim=0)
        attention.append(alpha)
        out = torch.tanh(network.decoder.combine(torch.cat([x, alpha @ states])))
        logits.append(network.embeddings.weight @ out)
    return torch.stack(logits), torch.stack(attention)


def test_logits_and_attention_are_the_formulas(generator):
    network, tokenizer = generator.model, generator.tokenizer
    context, inputs = tokenizer(QUESTIONS[0])["input_ids"], [2, 5, 9, 4]
    result = network(
        torch.tensor([context]),
        torch.ones(1, len(context)).long(),
        torch.tensor([inputs]),
        output_attentions=True,
    )
    logits, attention = written_out(network, context, inputs)
    assert_close(result.logits[0], logits)
    assert_close(result.cross_attentions[0][0, 0], attention)


def test_attention_sums_to_one_over_the_real_context(generator):
    network = generator.model
    ids, mask = generator.assemble(generator.tokenize_questions(QUESTIONS, separator=False))
    result = network(ids, mask.long(), torch.tensor([[2, 5]] * 3), output_attentions=True)
    attention = result.cross_attentions[0][:, 0]
    assert_close(attention.sum(dim=2), torch.ones(3, 2))
    assert (attention.masked_select(~mask.unsqueeze(1)) == 0).all()
    assert network(ids, mask.long(), torch.tensor([[2, 5]] * 3)).cross_attentions is None


@pytest.mark.parametrize("model_class", [RagSequence, RagToken])
def test_a_batch_equals_its_questions_one_by_one(model_class, retriever, generator):
    model = model_class(retriever, generator, 3)
    together = model(model.prepare(QUESTIONS, ANSWERS)).logprob
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        alone = model(model.prepare([question], [answer])).logprob
        assert_close(alone, together[row : row + 1], rtol=1e-5, atol=1e-5)


def test_the_likelihood_is_that_of_the_written_out_model(generator):
    model = ClosedBook(generator)
    likelihood = model(model.prepare(QUESTIONS[:1], ANSWERS[:1]))
    tokenizer = generator.tokenizer
    labels = [*tokenizer(ANSWERS[0], add_special_tokens=False)["input_ids"], 2]
    logits, _ = written_out(generator.model, tokenizer(QUESTIONS[0])["input_ids"], [2, *labels[:-1]])
    expected = logits.log_softmax(dim=-1)[range(len(labels)), labels].sum()
    assert_close(likelihood.logprob[0], expected)


@pytest.mark.parametrize("model_class", [RagSequence, RagToken, ClosedBook])
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_worth_what_training_says(model_class, beams, retriever, generator):
    """Decoding and the loss give an answer the same log p(y|x)."""
    model = ClosedBook(generator) if model_class is ClosedBook else model_class(retriever, generator, 3)
    model.eval()
    batch = model.prepare(QUESTIONS)
    answers = generate(model, model.read(batch), Decoding(max_new_tokens=5, num_beams=beams))
    for row, (answer, *_) in enumerate(answers):
        labels = torch.tensor([answer.tokens])
        one = model.prepare(QUESTIONS[row : row + 1])
        scored = type(one)(one.questions, one.generator_questions, labels, torch.ones_like(labels).bool())
        assert_close(model(scored).logprob.item(), answer.logprob, rtol=1e-5, atol=1e-5)
        assert math.isfinite(answer.logprob) and 0 < len(answer.tokens) <= 5


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*no `val_dataloader`")
def test_it_learns(retriever):
    """Three answers by heart within a few steps of the project's own module, which moves the question encoder too."""
    generator = new_lstm(word_tokenizer(), width=32, layers=1, dropout=0.0)
    model = RagToken(retriever, generator, 2)
    batch = model.prepare(QUESTIONS, ANSWERS)
    examples = [Example(q, (a,)) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    settings = Optimization(
        lr=0.01, question_encoder_lr=1e-4, warmup_steps=0, schedule="constant", weight_decay=0.0
    )
    before = -model(batch).logprob.sum().item()
    trainer = pl.Trainer(
        max_steps=100, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(RagModule(model.train(), settings), DataLoader([(examples, batch)] * 100, batch_size=None))
    assert -model(batch).logprob.sum().item() < 0.05 * before
    assert any(
        weight.grad.any() for weight in retriever.question_encoder.parameters() if weight.grad is not None
    )
    answers = generate(model.eval(), model.read(batch), Decoding(max_new_tokens=6))
    assert [of_question[0].text for of_question in answers] == ANSWERS


def test_save_and_load(tmp_path, generator):
    generator.save_pretrained(tmp_path / "lstm")
    loaded = Generator.from_pretrained(tmp_path / "lstm").eval()
    assert isinstance(loaded.model, LstmForConditionalGeneration)
    model, other = ClosedBook(generator), ClosedBook(loaded)
    batch = model.prepare(QUESTIONS, ANSWERS)
    for mine, read in zip(generator.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(mine, read)
    # Products over weights that lie at other addresses may differ in the last bit.
    assert_close(model(batch).logprob, other(batch).logprob, rtol=1e-6, atol=0)
    assert loaded.model.lm_head.weight is loaded.model.embeddings.weight


def test_a_whole_model_travels_as_a_checkpoint(tmp_path, retriever, index, generator):
    model = RagSequence(retriever, generator, 2)
    batch = model.prepare(QUESTIONS, ANSWERS)
    model.save_pretrained(tmp_path / "model")
    loaded = RagSequence.from_pretrained(tmp_path / "model", index).eval()
    assert torch.equal(loaded(batch).logprob, model(batch).logprob)
