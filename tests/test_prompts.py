"""Prompts of causal language models: what is read, with which tokens, and what a template may not be."""

import pytest
import torch
from conftest import PASSAGES, QUESTIONS, byte_tokenizer, t5_tokenizer, word_tokenizer
from test_causal import COMMON, plain
from tokenizers import processors

from rag.errors import UserError
from rag.generators.causal import CausalGenerator
from rag.generators.causal_loading import load_causal
from rag.generators.context import Ragged, token_rows
from rag.generators.prompts import CHAT, Prompt
from rag.model import ClosedBook

TEXTS = [f"{title}\n{text}" for title, text in PASSAGES]
WORDS = [*TEXTS, *QUESTIONS, "Question: Answer: a Paris", "user assistant"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def without_bos(tokenizer):
    """As GPT-2's: nothing is put before a text or after it."""
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    return tokenizer


def chatting(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def generator(tokenizer, **settings) -> CausalGenerator:
    given = {"max_context_length": 200, "max_target_length": 10} | settings
    model = plain("llama", vocab_size=len(tokenizer), max_position_embeddings=256, hidden_size=16, head_dim=4)
    return CausalGenerator(model, tokenizer, **given)


def assembled(made: CausalGenerator, question: str, passage: str | None) -> list[int]:
    rows = None if passage is None else Ragged.of(token_rows(made.tokenizer, [passage]))
    ids, mask = made.assemble(made.tokenize_questions([question], separator=passage is not None), rows)
    assert mask.all()
    return [*ids[0].tolist(), made.start_token]


@pytest.mark.parametrize("bos", [True, False])
def test_the_usual_prompt_is_the_text_s_own_tokens(bos):
    tokenizer = byte_tokenizer(WORDS, 500)
    made = generator(tokenizer if bos else without_bos(tokenizer))
    text = f"{TEXTS[0]}\n\nQuestion: {QUESTIONS[0]}\nAnswer:"
    first = [tokenizer.bos_token_id] if bos else []
    assert assembled(made, QUESTIONS[0], TEXTS[0]) == [*first, *token_rows(tokenizer, [text])[0]]
    # The answer's tokens are those that follow in running text.
    labels, mask = made.tokenize_targets(["Paris"])
    assert mask.all()
    whole = token_rows(tokenizer, [f"{text} Paris"])[0]
    assert [*assembled(made, QUESTIONS[0], TEXTS[0]), *labels[0, :-1].tolist()] == [*first, *whole]
    assert labels[0, -1] == tokenizer.eos_token_id


def test_pieces_that_carry_their_own_space_get_no_second_one():
    made = generator(t5_tokenizer(WORDS), template="{passage} {question} a", max_target_length=30)
    assert made.prompt.joint == ""
    words = token_rows(made.tokenizer, ["Paris is the capital"])[0]
    assert made.tokenize_targets(["Paris is the capital"])[0][0, :-1].tolist() == words


def test_a_question_may_come_first():
    tokenizer = word_tokenizer(WORDS)
    made = generator(tokenizer, template="Question: {question} / {passage} Answer:")
    text = f"Question: {QUESTIONS[1]} / {TEXTS[2]} Answer:"
    assert assembled(made, QUESTIONS[1], TEXTS[2]) == [
        tokenizer.bos_token_id,
        *token_rows(tokenizer, [text])[0],
    ]


def test_a_chat_is_the_template_s_own_text():
    tokenizer = chatting(without_bos(byte_tokenizer(WORDS, 500)))
    messages = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "{passage}\nQuestion: {question}"},
    ]
    made = generator(tokenizer, template=messages)
    filled = f"{TEXTS[0]}\nQuestion: {QUESTIONS[0]}"
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "a"}, {"role": "user", "content": filled}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert assembled(made, QUESTIONS[0], TEXTS[0]) == token_rows(tokenizer, [text])[0]
    assert made.tokenize_targets(["Paris"])[0][0, :-1].tolist() == token_rows(tokenizer, ["Paris"])[0]
    usual = generator(tokenizer, template=CHAT, max_context_length=220)
    assert "as few words as possible" in tokenizer.decode(assembled(usual, QUESTIONS[0], TEXTS[0]))


def test_the_passage_is_cut_and_the_question_never():
    made = generator(word_tokenizer(WORDS), max_context_length=24)
    question = QUESTIONS[2]
    tokens = assembled(made, question, " ".join(TEXTS))
    assert len(tokens) == 24
    tail = token_rows(made.tokenizer, [f"\n\nQuestion: {question}\nAnswer:"])[0]
    assert tokens[-len(tail) :] == tail
    with pytest.raises(UserError, match="does not fit the generator's context of 24"):
        assembled(made, " ".join(QUESTIONS * 3), TEXTS[0])


def test_without_a_passage_the_empty_lines_before_the_question_go():
    made = generator(byte_tokenizer(WORDS, 500))
    text = f"Question: {QUESTIONS[0]}\nAnswer:"
    assert assembled(made, QUESTIONS[0], None)[1:] == token_rows(made.tokenizer, [text])[0]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{passage} Answer:", "no place for the question: write {question} where"),
        ("{question} {passage} {question} a", "2 places for the question and 1 for the passage"),
        ("{passage} {question}", "ends with {question}, so that nothing says where the answer begins"),
        ("Question: {question} {passage} ", "ends with {passage}"),
        (CHAT, "has no chat template: give the template as text"),
        ([{"role": "user", "text": "{question}"}], "neither text nor a list of messages"),
        ([{"role": "user", "content": 5}], "neither text nor a list of messages"),
        (5, "neither text nor a list of messages"),
        ("{passage} {question} " + "a " * 300, "tokens by itself, and max_context_length 200: shorten"),
    ],
)
def test_a_template_that_is_none_is_refused_in_a_sentence(template, said):
    with pytest.raises(UserError) as refused:
        generator(word_tokenizer(WORDS), template=template)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_messages_that_a_chat_template_refuses_are_named():
    tokenizer = chatting(without_bos(byte_tokenizer(WORDS, 500)))
    tokenizer.chat_template = "{{ raise_exception('only user and assistant') }}"
    with pytest.raises(
        UserError, match="refuses generator.template .only user and assistant.: change its messages"
    ):
        Prompt.of(CHAT, tokenizer)


def test_passages_need_a_place():
    made = generator(word_tokenizer(WORDS), template="Question: {question} Answer:")
    with pytest.raises(UserError, match="no place for the passage: write {passage} where it belongs"):
        assembled(made, QUESTIONS[0], TEXTS[0])
    assert (
        assembled(made, QUESTIONS[0], None)[1:]
        == token_rows(made.tokenizer, [f"Question: {QUESTIONS[0]} Answer:"])[0]
    )


@pytest.mark.parametrize(("token", "what"), [("eos_token", "end-of-sequence"), ("pad_token", "padding")])
def test_a_tokenizer_without_a_mark_is_told_with_the_setting_that_mends_it(token, what, tmp_path):
    tokenizer = word_tokenizer(WORDS)
    setattr(tokenizer, token, None)
    with pytest.raises(UserError, match=f"no {what} token: name one of its own as generator.{token}"):
        generator(tokenizer)
    plain("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = {"max_context_length": 40, "max_target_length": 6}
    with pytest.raises(UserError, match=f"generator.{token}"):
        CausalGenerator.from_pretrained(tmp_path, **settings)
    made = CausalGenerator.from_pretrained(tmp_path, **{token: "</s>"}, **settings)
    assert getattr(made.tokenizer, token) == "</s>"
    with pytest.raises(UserError, match=f"generator.{token}=<nothing> is no token of"):
        CausalGenerator.from_pretrained(tmp_path, **{token: "<nothing>"}, **settings)


def test_a_prompt_longer_than_the_model_s_context_is_refused():
    with pytest.raises(
        UserError, match="max_context_length=250 and max_target_length=10 together are more than the 256"
    ):
        generator(word_tokenizer(WORDS), max_context_length=250)


@pytest.mark.parametrize("kind", ["bart", "mamba", "bert", "bloom"])
def test_a_kind_that_is_not_read_is_named_with_those_that_are(kind, tmp_path):
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

    tokenizer = word_tokenizer(WORDS)
    known = {"vocab_size": len(tokenizer)}
    if kind == "bart":
        known |= {
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
        }
        known |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    else:
        known |= COMMON | {"vocab_size": len(tokenizer), "n_head": 4, "n_layer": 2, "state_size": 4}
    config = CONFIG_MAPPING[kind](**known)
    (AutoModel if kind == "bart" else AutoModelForCausalLM).from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError) as refused:
        CausalGenerator.from_pretrained(tmp_path, max_context_length=40, max_target_length=6)
    said = str(refused.value)
    assert f"holds a model of type {kind}, which is not read as a causal language model" in said
    assert ": types such as gemma3_text" in said and "llama" in said and "\n" not in said


def test_four_bits_without_bitsandbytes_are_refused(tmp_path, monkeypatch):
    find = __import__("importlib.util").util.find_spec
    hidden = lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr("rag.generators.causal_loading.find_spec", hidden)
    with pytest.raises(UserError, match="quantize=4bit needs bitsandbytes, which is not installed"):
        load_causal(tmp_path, "float32", "4bit")
    with pytest.raises(UserError, match="quantize=2bit does not exist: there is 4bit"):
        load_causal(tmp_path, "float32", "2bit")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bits_with_an_adapter_are_trained_saved_and_reopened(dtype, tmp_path):
    pytest.importorskip(
        "bitsandbytes", reason="weights in four bits need bitsandbytes: pip install bitsandbytes"
    )
    pytest.importorskip("peft", reason='peft is an extra: pip install ".[causal]"')
    import bitsandbytes

    tokenizer = word_tokenizer(WORDS)
    wide = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_key_value_heads": 4}
    wide |= {"vocab_size": len(tokenizer)}
    plain("llama", **wide).save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    lengths = {"max_context_length": 40, "max_target_length": 6}
    made = CausalGenerator.from_pretrained(
        tmp_path / "whole", dtype, adapter="lora", rank=2, quantize="4bit", **lengths
    )
    quantised = [m for m in made.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    learned = {name: weight for name, weight in made.named_parameters() if weight.requires_grad}
    assert len(quantised) == 14 and learned and all("lora_" in name for name in learned)
    model = ClosedBook(made)
    optimiser = torch.optim.SGD(learned.values(), 1.0)
    losses = []
    for _ in range(3):
        loss = -model(model.prepare(QUESTIONS[:1], ["Paris"])).logprob.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    state = model.state_dict()  # what checkpoints hold
    assert {name.removeprefix("generator.") for name in state} == set(learned)
    model.load_state_dict({name: torch.zeros_like(weight) for name, weight in state.items()})
    assert not any(weight.any() for weight in learned.values())
    model.load_state_dict(state)
    made.eval().save_pretrained(tmp_path / "saved")
    again = CausalGenerator.from_pretrained(tmp_path / "saved").eval()
    assert any(isinstance(m, bitsandbytes.nn.Linear4bit) for m in again.modules())
    with torch.no_grad():
        one, two = (
            ClosedBook(each)(ClosedBook(each).prepare(QUESTIONS[:1], ["Paris"])) for each in (made, again)
        )
    torch.testing.assert_close(one.logprob, two.logprob)


def test_nothing_there_is_told():
    with pytest.raises(UserError, match="causal language model"):
        load_causal("/nowhere/at/all", "float32")
