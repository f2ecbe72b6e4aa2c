"""rag/decoding/generation.py beside transformers.models.rag, with the same weights, contexts and passage scores.

First where transformers is right, then one test for each place where it is not: what it does, and the right
value worked out from a plain forward pass of its own generator, passage by passage and without padding.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import tokenizers
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    DPRConfig,
    DPRQuestionEncoder,
    PreTrainedTokenizerFast,
    RagConfig,
    RagRetriever,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation.streamers import TextStreamer

from rag.decoding.answers import Answer
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.generators.seq2seq import Generator
from rag.model import Contexts, RagModel, RagSequence, RagToken
from rag.retrievers.protocol import Retrieved

BOS, PAD, EOS = 0, 1, 2
QUESTIONS, DOCS = 6, 4
VOCABULARIES = [40, 50_264]  # the second is that of facebook/rag-*
KINDS = [
    pytest.param(RagToken, RagTokenForGeneration, id="token"),
    pytest.param(RagSequence, RagSequenceForGeneration, id="sequence"),
]


# -- the same weights and contexts on both sides ---------------------------------------------------


def bart(vocabulary: int) -> BartForConditionalGeneration:
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=vocabulary,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=64,
            init_std=0.8,
            bos_token_id=BOS,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=EOS,
            forced_eos_token_id=None,
            tie_word_embeddings=False,  # or a token would always follow itself
        )
    ).eval()
    with (
        torch.no_grad()
    ):  # what comes next should depend on the place in the answer, not on the context alone
        model.get_decoder().embed_positions.weight.mul_(3)
        for layer in model.get_decoder().layers:
            layer.encoder_attn.out_proj.weight.mul_(0.3)
    # Answers that end, after one token or several, and without <s> and <pad>, which transformers takes for no
    # part of an answer.
    end = 4.0 if vocabulary == 40 else 10.0
    model.final_logits_bias[0, [BOS, PAD, EOS]] = torch.tensor([-90.0, -90.0, end])
    return model


def t5(vocabulary: int) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=vocabulary,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        initializer_factor=2.0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
    )
    return T5ForConditionalGeneration(config).eval()


def question_encoder() -> DPRQuestionEncoder:
    bert = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    return DPRQuestionEncoder(DPRConfig(**bert.to_dict())).eval()


def generator(model: nn.Module) -> Generator:
    words = {"<s>": BOS, "<pad>": PAD, "</s>": EOS} | {f"w{token}": token for token in range(3, 40)}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w3"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="w3"
    )
    return Generator(model, tokenizer)


class World:
    """Questions with their contexts, on both sides."""

    def __init__(
        self, model: nn.Module, docs: int = DOCS, questions: int = QUESTIONS, config_docs: int | None = None
    ):
        self.bart, self.docs = model, docs
        draw = np.random.default_rng(1)
        self.contexts = [
            [BOS, *draw.integers(3, 40, size=draw.integers(2, 12)).tolist(), EOS]
            for _ in range(questions * docs)
        ]
        longest = max(map(len, self.contexts))
        self.ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in self.contexts])
        self.mask = self.ids != PAD
        self.scores = torch.from_numpy(draw.normal(size=(questions, docs), scale=2).astype(np.float32))
        self.encoder = question_encoder()
        self.config_docs = config_docs or docs

    def theirs(self, kind: type, right_mask: bool = True):
        config = RagConfig.from_question_encoder_generator_configs(
            self.encoder.config, self.bart.config, n_docs=self.config_docs
        )
        model = kind(config=config, question_encoder=self.encoder, generator=self.bart).eval()
        if kind is RagSequenceForGeneration and right_mask:
            plain = self.bart.generate

            def with_mask(ids: Tensor, **kwargs):
                return plain(ids, **(kwargs | {"attention_mask": (ids != PAD).long()}))

            self.bart.generate = with_mask
        return model

    def ask_theirs(self, kind: type, right_mask: bool = True, **kwargs) -> list[tuple[int, ...]]:
        """Their token ids, start token and padding left out."""
        model = self.theirs(kind, right_mask)
        try:
            sequences = model.generate(
                context_input_ids=self.ids,
                context_attention_mask=self.mask.long(),
                doc_scores=self.scores,
                **kwargs,
            )
        finally:
            self.bart.__dict__.pop("generate", None)
        return [cut(row) for row in sequences[:, 1:].tolist()]

    def ask_ours(self, kind: type[RagModel], decoding: Decoding, **kwargs) -> list[list[Answer]]:
        model = kind.__new__(kind)
        nn.Module.__init__(model)
        model.generator = generator(self.bart)
        with torch.no_grad():
            states = model.generator.encode(self.ids, self.mask)
        rows = np.arange(self.docs)[None].repeat(len(self.scores), axis=0)
        retrieved = Retrieved(rows, self.scores)
        return generate(
            model, Contexts(states, self.mask, retrieved.doc_logprobs, retrieved), decoding, **kwargs
        )

    def by_hand(self, question: int, answer: tuple[int, ...]) -> Tensor:
        """log p_θ(y|x,z) of one answer for each passage of a question, one passage at a time: (docs,)."""
        start = self.bart.config.decoder_start_token_id
        scores = []
        for row in self.contexts[question * self.docs : (question + 1) * self.docs]:
            with torch.no_grad():
                logits = self.bart(
                    input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([[start, *answer[:-1]]])
                ).logits
            scores.append(logits[0].log_softmax(-1).gather(-1, torch.tensor(answer).unsqueeze(-1)).sum())
        return torch.stack(scores)

    def greedy_by_hand(self, question: int, length: int) -> list[tuple[int, ...]]:
        """What greedy search finds for each passage of a question, from its context without padding."""
        tokens_so_far = []
        for row in self.contexts[question * self.docs : (question + 1) * self.docs]:
            answer: tuple[int, ...] = ()
            while len(answer) < length and EOS not in answer:
                start = torch.tensor([[self.bart.config.decoder_start_token_id, *answer]])
                with torch.no_grad():
                    logits = self.bart(input_ids=torch.tensor([row]), decoder_input_ids=start).logits
                answer += (int(logits[0, -1].argmax()),)
            tokens_so_far.append(answer)
        return tokens_so_far

    def best_of(self, question: int, hypotheses: list[tuple[int, ...]], prior: Tensor) -> tuple[int, ...]:
        """argmax_y Σ_z p(z|x) p(y|x,z) over some hypotheses and the passages that `prior` is over."""
        docs = len(prior)
        return max(hypotheses, key=lambda y: float((prior + self.by_hand(question, y)[:docs]).logsumexp(0)))

    def thorough_by_hand(self, question: int, length: int) -> tuple[int, ...]:
        """RAG-Sequence's answer from the greedy hypotheses of each passage."""
        hypotheses = self.greedy_by_hand(question, length)
        return self.best_of(question, hypotheses, self.scores[question].log_softmax(0))


def cut(tokens: Sequence[int]) -> tuple[int, ...]:
    tokens = tuple(tokens)
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tuple(t for t in tokens if t != PAD)


# -- where transformers is right -------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize(
    ("num_beams", "count", "penalty"), [(1, 1, 1.0), (4, 1, 1.0), (4, 3, 1.0), (3, 2, 0.0)]
)
def test_token_ids(vocabulary: int, num_beams: int, count: int, penalty: float) -> None:
    world = World(bart(vocabulary))
    beams = {"num_beams": num_beams, "length_penalty": penalty} if num_beams > 1 else {}
    theirs = world.ask_theirs(RagTokenForGeneration, max_length=8, num_return_sequences=count, **beams)
    decoding = Decoding(
        max_new_tokens=7, num_beams=num_beams, num_return_sequences=count, length_penalty=penalty
    )
    ours = world.ask_ours(RagToken, decoding)
    assert [answer.tokens for answers in ours for answer in answers] == theirs
    assert len({len(answer) for answer in theirs}) > 1


@pytest.mark.parametrize("docs", [1, DOCS])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("setting", [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}])
def test_processors_see_log_probabilities(docs: int, num_beams: int, setting: dict) -> None:
    """A repetition penalty multiplies what is negative and divides what is not: RAG-Token's log-probabilities are all
    negative, with one passage as with several; a generator's logits are not."""
    world = World(bart(40), docs)
    theirs = world.ask_theirs(RagTokenForGeneration, max_length=8, num_beams=num_beams, **setting)
    ours = world.ask_ours(RagToken, Decoding(max_new_tokens=7, num_beams=num_beams), **setting)
    assert [best[0].tokens for best in ours] == theirs
    assert theirs != world.ask_theirs(RagTokenForGeneration, max_length=8, num_beams=num_beams)


@pytest.mark.parametrize(
    ("vocabulary", "num_beams", "count"),
    [(40, 1, 1), (40, 4, 1), *((vocabulary, 4, 3) for vocabulary in VOCABULARIES)],
)
def test_sequence_ids_with_the_right_mask(vocabulary: int, num_beams: int, count: int) -> None:
    world = World(bart(vocabulary))
    theirs = world.ask_theirs(
        RagSequenceForGeneration,
        max_new_tokens=7,
        min_new_tokens=2,
        num_beams=num_beams,
        num_return_sequences=count,
    )
    decoding = Decoding(max_new_tokens=7, min_new_tokens=2, num_beams=num_beams, num_return_sequences=count)
    ours = world.ask_ours(RagSequence, decoding)
    assert [answer.tokens for answers in ours for answer in answers] == theirs


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize(("ours_kind", "theirs_kind"), KINDS)
def test_scores_of_answers(ours_kind: type[RagModel], theirs_kind: type, vocabulary: int) -> None:
    """log p(y|x) of our answers is minus transformers' loss for them."""
    world = World(bart(vocabulary))
    answers = world.ask_ours(ours_kind, Decoding(max_new_tokens=6, min_new_tokens=6, num_beams=2))
    labels = torch.tensor([[EOS, *best[0].tokens] for best in answers])
    with torch.no_grad():
        loss = world.theirs(theirs_kind)(
            context_input_ids=world.ids,
            context_attention_mask=world.mask.long(),
            doc_scores=world.scores,
            labels=labels,
            reduce_loss=False,
        ).loss
    world.bart.__dict__.pop("generate", None)
    torch.testing.assert_close(torch.tensor([best[0].logprob for best in answers]), -loss, rtol=1e-4, atol=0)


def test_t5_token_ids() -> None:
    world = World(t5(40))
    for num_beams in (1, 3):
        theirs = world.ask_theirs(RagTokenForGeneration, max_length=7, num_beams=num_beams)
        ours = world.ask_ours(RagToken, Decoding(max_new_tokens=6, num_beams=num_beams))
        assert [best[0].tokens for best in ours] == theirs


# -- where it is not -------------------------------------------------------------------------------


def test_padding_is_not_attended_to_in_sequence_generation() -> None:
    """transformers generates RAG-Sequence's hypotheses with attention_mask=None: it reads padding as text."""
    world = World(bart(40))
    right = [world.thorough_by_hand(question, 6) for question in range(QUESTIONS)]
    theirs = world.ask_theirs(RagSequenceForGeneration, right_mask=False, max_new_tokens=6)
    assert theirs != right
    assert [best[0].tokens for best in world.ask_ours(RagSequence, Decoding(max_new_tokens=6))] == right


def test_max_new_tokens_is_honoured_by_token_generation() -> None:
    """transformers' RAG-Token reads max_length alone, 20 by default."""
    model = bart(40)
    model.final_logits_bias[0, EOS] = -90.0
    world = World(model)
    theirs = world.ask_theirs(RagTokenForGeneration, max_new_tokens=4)
    assert {len(answer) for answer in theirs} == {19}
    ours = [best[0].tokens for best in world.ask_ours(RagToken, Decoding(max_new_tokens=4))]
    assert ours == [answer[:4] for answer in theirs]


def test_the_number_of_samples_is_honoured_by_token_generation() -> None:
    """transformers' RAG-Token gives one sample however many are asked for."""
    world = World(bart(40))
    theirs = world.ask_theirs(RagTokenForGeneration, max_length=5, do_sample=True, num_return_sequences=3)
    assert len(theirs) == QUESTIONS
    ours = world.ask_ours(RagToken, Decoding(max_new_tokens=4, do_sample=True, num_return_sequences=3))
    assert [len(answers) for answers in ours] == [3] * QUESTIONS


def test_token_generation_streams() -> None:
    """transformers' RAG-Token takes no streamer."""
    world = World(bart(40), questions=1)
    streamer = TextStreamer(generator(world.bart).tokenizer)
    with pytest.raises(ValueError, match="streamer"):
        world.ask_theirs(RagTokenForGeneration, max_length=5, streamer=streamer)
    written: list[str] = []
    streamer.on_finalized_text = lambda text, stream_end=False: written.append(text)
    ((answer,),) = world.ask_ours(RagToken, Decoding(max_new_tokens=4), streamer=streamer)
    words = generator(world.bart).tokenizer.convert_ids_to_tokens([EOS, *answer.tokens])
    assert "".join(written).split() == words  # the start token first


def test_one_token_answers_keep_the_prior() -> None:
    """transformers adds log p(z|x) at the second token: hypotheses of one token are ranked without it."""
    world = World(bart(40), questions=12)

    def best(question: int, prior: Tensor) -> tuple[int, ...]:
        return world.best_of(question, world.greedy_by_hand(question, 1), prior)

    right = [best(question, scores.log_softmax(0)) for question, scores in enumerate(world.scores)]
    without_prior = [best(question, torch.zeros(DOCS)) for question in range(12)]
    assert right != without_prior
    assert world.ask_theirs(RagSequenceForGeneration, max_new_tokens=1) == without_prior
    assert [best[0].tokens for best in world.ask_ours(RagSequence, Decoding(max_new_tokens=1))] == right


class FixedRetriever(RagRetriever):
    """Gives the first n_docs of a question's contexts; the question is its own number."""

    def __init__(self, world: World):
        self.world = world
        self.asked: list[int] = []

    def __call__(self, input_ids, hidden, prefix=None, n_docs=None, return_tensors=None):
        self.asked.append(n_docs)
        world, questions = self.world, input_ids[:, 0].tolist()
        rows = [question * world.docs + doc for question in questions for doc in range(n_docs)]
        # Vectors whose inner products with the question's are the scores.
        hidden = torch.from_numpy(hidden)
        scores = world.scores[questions, :n_docs]
        vectors = scores.unsqueeze(2) * (hidden / hidden.square().sum(1, keepdim=True)).unsqueeze(1)
        return {
            "context_input_ids": world.ids[rows],
            "context_attention_mask": world.mask[rows].long(),
            "retrieved_doc_embeds": vectors,
            "doc_ids": torch.tensor(rows).view(len(questions), n_docs),
        }


def test_all_passages_asked_for_take_part_in_rescoring() -> None:
    """With n_docs=4 and config.n_docs=2, transformers generates from four passages and rescores with two."""
    world = World(bart(40), questions=12, config_docs=2)
    model = world.theirs(RagSequenceForGeneration)
    model.rag.retriever = retriever = FixedRetriever(world)
    try:
        theirs = model.generate(
            input_ids=torch.arange(12).unsqueeze(1), n_docs=4, max_new_tokens=6, min_new_tokens=2
        )
    finally:
        del world.bart.generate
    assert set(retriever.asked) == {4, 2}
    # Answers of one token would lose the prior there, so they are not allowed.
    hypotheses = [
        cut(model.generator.generate(torch.tensor([row]), max_new_tokens=6, min_new_tokens=2)[0, 1:].tolist())
        for row in world.contexts
    ]

    def best(question: int, docs: int) -> tuple[int, ...]:
        prior = world.scores[question, :docs].log_softmax(0)
        return world.best_of(question, hypotheses[question * 4 : question * 4 + 4], prior)

    right, with_two = ([best(question, docs) for question in range(12)] for docs in (4, 2))
    assert right != with_two
    assert [cut(row) for row in theirs[:, 1:].tolist()] == with_two
    ours = world.ask_ours(RagSequence, Decoding(max_new_tokens=6, min_new_tokens=2))
    assert [best[0].tokens for best in ours] == right


def test_t5_has_sequence_generation() -> None:
    """transformers' RAG-Sequence asks T5's config for a bos_token_id that it does not have."""
    world = World(t5(40))
    with pytest.raises(AttributeError, match="bos_token_id"):
        world.ask_theirs(RagSequenceForGeneration, max_new_tokens=5)
    right = [world.thorough_by_hand(question, 5) for question in range(QUESTIONS)]
    assert [best[0].tokens for best in world.ask_ours(RagSequence, Decoding(max_new_tokens=5))] == right
