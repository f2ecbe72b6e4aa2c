"""Adapters: trained alone, on any layer, with plain autograd's gradients; saved alone or merged; reopened."""

import json
from pathlib import Path

import pytest
import torch
from commands import run
from conftest import ANSWERS, byte_tokenizer
from conftest import QUESTIONS as PEOPLE
from test_causal import plain
from test_prompts import WORDS
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from rag.commands.train import train
from rag.errors import UserError
from rag.generators.causal import CausalGenerator
from rag.model import ClosedBook, RagSequence
from rag.parts import TrainedPart
from rag.reopen import reopen
from rag.training.optimization import Optimization

peft = pytest.importorskip("peft", reason='peft is an extra: pip install ".[causal]"')
SETTINGS = {"max_context_length": 60, "max_target_length": 8}
QUESTIONS, TARGETS = ["what is the capital of France?", "the Tiber"], ["Paris", "the river in Italy"]


@pytest.fixture(params=["llama", "qwen2", "gpt2"])
def folder(request, tmp_path: Path) -> Path:
    """A model with its tokenizer; Qwen's and GPT-2's output layer is tied to the embeddings."""
    tokenizer = byte_tokenizer(WORDS, 300)
    plain(request.param, vocab_size=len(tokenizer), max_position_embeddings=80).save_pretrained(
        tmp_path / "base"
    )
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(folder: Path, modules=None, **settings) -> CausalGenerator:
    """As it might be once it was trained: a new LoRA changes nothing."""
    made = CausalGenerator.from_pretrained(
        folder, adapter="lora", rank=2, modules=modules, **SETTINGS, **settings
    )
    with torch.no_grad():
        for weight in made.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.3)
    return made.eval()


def scores(made: CausalGenerator) -> torch.Tensor:
    with torch.no_grad():
        return ClosedBook(made)(ClosedBook(made).prepare(QUESTIONS, TARGETS)).logprob


def modules_of(folder: Path) -> list:
    attention = ["c_attn"] if "gpt2" in (folder / "config.json").read_text() else ["q_proj", "v_proj"]
    return [None, attention, ["lm_head"], [*attention, "lm_head"], "all-linear"]


@pytest.mark.parametrize("which", range(5))
def test_an_adapter_on_any_layer_has_plain_autograd_s_gradient(folder, which):
    made = adapted(folder, modules_of(folder)[which])
    trained = {name: weight for name, weight in made.model.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert not any(
        weight.requires_grad for name, weight in made.model.named_parameters() if "lora_" not in name
    )
    model = ClosedBook(made)
    batch = model.prepare(QUESTIONS, TARGETS)
    ids, mask = made.assemble(batch.generator_questions)
    total = 0
    for row, own, labels, real in zip(ids, mask, batch.labels, batch.label_mask, strict=True):
        answer = labels[real]
        whole = torch.cat([row[own], torch.tensor([made.start_token]), answer]).unsqueeze(0)
        logits = made.model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[
            0, -len(answer) - 1 : -1
        ]
        total = total + logits.log_softmax(-1).gather(-1, answer.unsqueeze(-1)).sum()
    expected = dict(zip(trained, torch.autograd.grad(total, list(trained.values())), strict=True))
    likelihood = model(batch).logprob.sum()
    assert_close(likelihood, total, rtol=1e-4, atol=1e-4)
    likelihood.backward()
    for name, weight in trained.items():
        assert_close(weight.grad, expected[name], rtol=1e-3, atol=1e-4)
        assert weight.grad.abs().sum() > 0


def test_the_optimiser_changes_the_adapter_alone(folder):
    made = adapted(folder)
    model = ClosedBook(made)
    before = {name: weight.clone() for name, weight in made.model.named_parameters()}
    optimizer = Optimization(lr=0.1, warmup_steps=0, weight_decay=0.1).configure(model.trained_parts(), 10)[
        "optimizer"
    ]
    (-model(model.prepare(QUESTIONS, TARGETS)).logprob.sum()).backward()
    optimizer.step()
    for name, weight in made.model.named_parameters():
        assert torch.equal(weight, before[name]) != ("lora_" in name)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's use of transformers
def test_it_is_saved_alone_and_reopened(folder, tmp_path):
    made = adapted(folder, template="{passage} / {question} =")
    made.save_pretrained(tmp_path / "saved")
    files = {file.name for file in (tmp_path / "saved").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    again = CausalGenerator.from_pretrained(tmp_path / "saved")
    assert again.settings == made.settings
    assert_close(scores(again), scores(made))
    assert any(weight.requires_grad for weight in again.parameters())  # and can be trained on
    again.save_pretrained(tmp_path / "twice")
    assert_close(scores(CausalGenerator.from_pretrained(tmp_path / "twice")), scores(made))
    # peft and transformers read the folder by themselves
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), tmp_path / "saved"
    ).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert_close(theirs(input_ids=ids).logits, made.model(input_ids=ids).logits)


def test_a_base_that_has_moved_is_named_and_can_be_given(folder, tmp_path):
    made = adapted(folder)
    made.save_pretrained(tmp_path / "saved")
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="base"):
        CausalGenerator.from_pretrained(tmp_path / "saved")
    assert_close(scores(CausalGenerator.from_pretrained(tmp_path / "saved", base=moved)), scores(made))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_an_adapter_that_peft_wrote_is_read(folder, tmp_path):
    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    made = CausalGenerator.from_pretrained(tmp_path / "theirs", **SETTINGS).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert_close(made.model(input_ids=ids).logits, theirs(input_ids=ids).logits)
    with pytest.raises(UserError, match="holds an adapter already: leave generator.adapter out"):
        CausalGenerator.from_pretrained(tmp_path / "theirs", adapter="lora", **SETTINGS)
    with pytest.raises(
        UserError, match="generator.base=.* is for an adapter, but .* holds none: leave it out"
    ):
        CausalGenerator.from_pretrained(folder, base=folder, **SETTINGS)


@pytest.mark.parametrize(
    "which", [0, 3]
)  # 3: the output layer too, which shares its matrix with the embeddings
def test_it_is_merged_into_a_model_of_its_own(folder, tmp_path, which):
    made = adapted(folder, modules_of(folder)[which])
    expected = scores(made)
    made.merge().save_pretrained(tmp_path / "merged")
    again = CausalGenerator.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in again.model.named_modules())
    assert_close(scores(again), expected, rtol=1e-4, atol=1e-4)
    assert all(weight.requires_grad for weight in again.parameters())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([[5, 6, 7]])
    assert_close(theirs(input_ids=ids).logits, again.model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["ia3", "loha", "lokr", "boft"])
def test_other_adapters_of_peft_s(folder, kind):
    if "gpt2" in (folder / "config.json").read_text() and kind != "ia3":
        pytest.skip("peft puts this kind into linear layers alone, which GPT-2's are not")
    modules = None if kind == "ia3" else modules_of(folder)[1]
    made = CausalGenerator.from_pretrained(folder, adapter=kind, modules=modules, **SETTINGS)
    model = ClosedBook(made)
    (-model(model.prepare(QUESTIONS, TARGETS)).logprob.sum()).backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in made.parameters())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adapter": "lora", "modules": ["qq_proj"]}, "generator.modules names qq_proj, which a"),
        ({"adapter": "lora", "modules": 5}, "generator.modules=5 names no modules: give a list"),
        ({"adapter": "lora", "modules": [7]}, "generator.modules=[7] names no modules: give a list"),
        ({"adapter": "lora", "modules": []}, "generator.modules=[] names no modules: give a list"),
        (
            {"adapter": "prefix_tuning"},
            "generator.adapter=prefix_tuning is no adapter that changes modules: there are",
        ),
        ({"adapter": "loar"}, "generator.adapter=loar is no adapter that changes modules"),
        ({"adapter": "ia3", "rank": 4}, "generator.adapter=ia3 cannot be put into this"),
        (
            {"adapter": "lora", "adapter_settings": {"alpha": 3}},
            "generator.adapter=lora cannot be put into this",
        ),
    ],
)
def test_what_does_not_exist_is_told_in_a_sentence(folder, settings, said):
    with pytest.raises(UserError) as refused:
        CausalGenerator.from_pretrained(folder, **SETTINGS, **settings)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_without_peft_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setattr("rag.generators.adapters.find_spec", lambda name: None)
    with pytest.raises(UserError, match="adapters need peft, which is not installed: pip install peft"):
        CausalGenerator.from_pretrained(folder, adapter="lora", **SETTINGS)


def test_checkpoints_hold_the_adapter_alone(folder):
    made, other = adapted(folder), adapted(folder)
    model = ClosedBook(made)
    state = model.state_dict()
    assert state and all("lora_" in name for name in state)
    ClosedBook(other).load_state_dict(state)
    torch.testing.assert_close(scores(other), scores(made))
    whole = {name: weight for name, weight in model.named_parameters()}  # as it was once written
    ClosedBook(adapted(folder)).load_state_dict(whole)
    merged = made.merge()
    assert len(merged.state_dict()) >= len(list(merged.parameters()))


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_a_run_with_an_adapter_is_trained_reopened_and_judged(folder, index, tmp_path, capsys):
    for name in ("train", "dev"):
        lines = zip(PEOPLE, ANSWERS, strict=True)
        text = "".join(json.dumps({"question": q, "answers": [a]}) + "\n" for q, a in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    settings = [
        *("experiment=wiki/causal", f"data={tmp_path}", f"paths.outputs={tmp_path}/runs", "inputs=[]"),
        *(
            f"task.train={tmp_path}/train.jsonl",
            f"task.dev={tmp_path}/dev.jsonl",
            "corpus.path=/nowhere/at/all",
        ),
        *(
            "retriever=bm25",
            f"index.path={index.folder}",
            "n_docs=2",
            "test_n_docs=2",
            "decoding.max_new_tokens=8",
        ),
        *(
            f"generator.path={folder}",
            "generator.template=null",
            "generator.modules=null",
            "generator.rank=2",
        ),
        *("generator.max_context_length=60", "generator.max_target_length=8", "datamodule.batch_size=3"),
        *("trainer.max_steps=2", "trainer.val_check_interval=2", "optimization.warmup_steps=0"),
    ]
    assert run("train", *settings, "decoding.max_new_tokens=40") == 2
    assert "decoding.max_new_tokens is 40 but the generator has 20 positions" in capsys.readouterr().err
    with pytest.raises(
        UserError, match="generator.modules names nothing_proj"
    ):  # from Python, as the command tells it
        train(*settings, "generator.modules=[nothing_proj]")
    assert run("train", *settings) == 0
    folder = tmp_path / "runs" / "wiki" / "causal"
    saved = folder / "model" / "generator"
    assert (saved / "adapter_model.safetensors").exists() and not (saved / "model.safetensors").exists()
    model = reopen(folder)
    assert isinstance(model, RagSequence) and isinstance(model.generator, CausalGenerator)
    learned = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert learned and all(weight.abs().sum() > 0 for weight in learned)  # zeros at first
    assert run("evaluate", f"checkpoint={folder}", "split=dev") == 0
    with pytest.raises(UserError, match="this format holds an encoder–decoder"):
        model.save_pretrained(tmp_path / "exported")


def test_its_part_is_the_generator_s(folder):
    made = adapted(folder)
    (part,) = made.trained_parts()
    assert isinstance(part, TrainedPart) and part.rate == "generator" and part.file == "generator"
