"""Tiny encoders with random weights as folders in sentence-transformers' format, and their vectors written out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import bert_tokenizer, word_tokenizer
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
_OTHER_NAMES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64},
    "electra": _SIZES | {"embedding_size": 16},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3},
    "llama": _SIZES | {"num_key_value_heads": 1},
    "mistral": _SIZES | {"num_key_value_heads": 1, "sliding_window": None, "head_dim": 8},
    "modernbert": _SIZES | {"global_attn_every_n_layers": 2, "local_attention": 8},
    "qwen2": _SIZES | {"num_key_value_heads": 1},
    "qwen3": _SIZES | {"num_key_value_heads": 1, "head_dim": 8},
}


def tiny_transformer(folder: Path, kind: str = "bert", **settings: Any) -> Path:
    """A transformer of a type, with its tokenizer, in its own right: no pooling is stated anywhere."""
    torch.manual_seed(7)
    tokenizer = (
        word_tokenizer() if kind in ("gpt2", "llama", "mistral", "qwen2", "qwen3") else bert_tokenizer()
    )
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    special = {"pad_token_id": tokenizer.pad_token_id, "sep_token_id": tokenizer.sep_token_id}
    sizes = _OTHER_NAMES.get(kind, _SIZES) | {"vocab_size": len(tokenizer)} | ends | special | settings
    model = AutoModel.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    for name, weight in model.named_parameters():  # what starts at zero would hide a mistake
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_modules(
    folder: Path,
    pooling: str = "mean_tokens",
    normalize: bool = True,
    dense: tuple[int, int] | None = None,
    prompts: dict[str, str] | None = None,
    max_length: int | None = 32,
    **more: Any,
) -> Path:
    """The files of sentence-transformers around a transformer. more: of config_sentence_transformers.json."""
    kinds = ["Transformer", "Pooling", *["Dense"] * (dense is not None), *["Normalize"] * normalize]
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": f"{n}_{kind}" if n else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    said = {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 16} | said))
    if dense is not None:
        sizes = dict(zip(("in_features", "out_features"), dense, strict=True))
        activation = "torch.nn.modules.activation.Tanh"
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense/config.json").write_text(
            json.dumps(sizes | {"bias": True, "activation_function": activation})
        )
        weights = {"linear.weight": torch.randn(dense[1], dense[0]) / 4, "linear.bias": torch.randn(dense[1])}
        save_file(weights, folder / "2_Dense/model.safetensors")
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": max_length, "do_lower_case": False})
    )
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts or {}} | more))
    return folder


def written_out(
    folder: Path, texts: Sequence[str], pooling: str, length: int, normalize: bool = True
) -> Tensor:
    """The vectors of texts one by one, so that nothing is padded: from the states of transformers' own model."""
    from transformers import AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0]
        vectors.append(
            {
                "cls": states[0],
                "last": states[-1],
                "mean": states.mean(dim=0),
                "max": states.max(dim=0).values,
                "mean_sqrt_len": states.sum(dim=0) / len(states) ** 0.5,
            }[pooling]
        )
    stacked = torch.stack(vectors)
    return stacked / stacked.norm(dim=1, keepdim=True) if normalize else stacked
