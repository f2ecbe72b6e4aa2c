"""Training from scratch: the tokenizer, the starting weights and the denoising task."""

import json

import pytest
import torch
from torch.testing import assert_close

from rag.model import ClosedBook
from rag.scratch.denoising import DenoisingData, candidate_runs, split_sentences
from rag.scratch.models import new_encoders, new_generator, sinusoids
from rag.scratch.tokenizer import train_bpe_tokenizer, train_word_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "passages.jsonl"
    text = (
        "Ada Marlow was born in Dunport in 1921. She married Otto Finch. In the evening she played the lute."
    )
    path.write_text(json.dumps({"id": "1", "title": "Ada Marlow", "text": text}))
    return path


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_word_tokenizer([str(corpus)])


def test_words_are_whole_tokens_in_any_case(tokenizer):
    assert tokenizer.tokenize("Ada MARLOW / otto // lute?") == [
        "ada",
        "marlow",
        "/",
        "otto",
        "//",
        "lute",
        "<unk>",
    ]
    pair = tokenizer("ada", "lute")
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"]) == ["<s>", "ada", "</s>", "lute", "</s>"]
    assert tokenizer("ada", "lute", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 1, 1]


def test_bytes_lose_nothing(corpus):
    tokenizer = train_bpe_tokenizer([str(corpus)], vocab_size=300)
    text = " naïve “quotes” 1,234"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip() == text.strip()


def test_starting_weights(tokenizer):
    """Queries equal keys, values pass through, and both encoders start alike with scores of moderate size."""
    generator = new_generator(tokenizer, width=16, feedforward=32, copy_strength=0.8)
    for layer in generator.model.model.encoder.layers:
        attention = layer.self_attn
        assert_close(attention.q_proj.weight, attention.k_proj.weight)
        assert_close(
            attention.out_proj.weight @ attention.v_proj.weight, 0.8 * torch.eye(16), atol=1e-5, rtol=0
        )
    question, passage = new_encoders(tokenizer, width=16, feedforward=32, score_scale=0.1)
    tokens = question.tokenize(["ada marlow"])
    assert_close(question(**tokens), passage(**tokens))
    # The last layer norm's gain is √0.1, so that |v|² is 0.1 · D.
    assert float(question(**tokens).detach().square().sum()) == pytest.approx(1.6, rel=1e-3)


def test_sinusoids_by_hand():
    assert_close(
        sinusoids(2, 4), torch.tensor([[0.0, 1, 0, 1], [0.8414710, 0.5403023, 0.0099998, 0.9999500]])
    )


def test_names_and_other_content_words_are_masked_not_function_words_or_the_title():
    sentence = "Ada Marlow met Otto Finch at the Old Mill in 1921."
    names, singles = candidate_runs(sentence, "Ada Marlow")
    assert [sentence[a:b] for a, b in names] == ["Otto Finch", "Old Mill"]
    assert [sentence[a:b] for a, b in singles] == ["met", "Otto", "Finch", "Old", "Mill", "1921"]


def test_sentences():
    assert split_sentences("One thing. Is it? Yes! Done.") == ["One thing.", "Is it?", "Yes!", "Done."]


@pytest.mark.parametrize("whole", [True, False])
def test_a_masked_run_is_asked_for_in_the_generators_own_form(corpus, tokenizer, whole):
    model = ClosedBook(new_generator(tokenizer, width=16, feedforward=32))
    data = DenoisingData([str(corpus)], model, 8, whole_sentence_steps=1 if whole else 0, absent_share=0.0)
    data.setup()
    text = json.loads(corpus.read_text())["text"]
    for example in data.make_batch(0)[0]:
        context, _, masked = example.question.partition(" // ")
        assert context == f"Ada Marlow / {text}"
        before, after = masked.split("<mask>")
        target = example.answers[0]
        if whole:
            assert target in split_sentences(text) and target.startswith(before) and target.endswith(after)
        else:
            assert before + target + after in split_sentences(text)


def test_the_sentence_may_be_taken_out_of_the_passage(corpus, tokenizer):
    model = ClosedBook(new_generator(tokenizer, width=16, feedforward=32))
    data = DenoisingData([str(corpus)], model, 8, whole_sentence_steps=1, absent_share=1.0)
    data.setup()
    for example in data.make_batch(0)[0]:
        assert example.answers[0] not in example.question.partition(" // ")[0]
