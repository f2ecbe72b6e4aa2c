"""The repositories that the configs and the README name, tiny: the released files' names, layouts, types and keys.

Weights are random, and the vectors of wiki_dpr those of its own passage encoder. What transformers does not write any
more is as it was: names of old weights, poolers that nobody uses, configs of version 3, vocabularies without a
tokenizer.json.
"""

import json
from pathlib import Path
from typing import Any

import torch
from conftest import SENTENCES
from hub_data_sets import questions, wiki_dpr
from safetensors.torch import save_file
from tokenizers import AddedToken
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForPreTraining,
    BertModel,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
)

WIDTH = 16
BERT_SPECIAL = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
BART_SPECIAL = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>"}


def build(root: Path) -> None:
    """Write all of them under root/models and root/datasets."""
    torch.manual_seed(7)
    bert(root / "models/google-bert/bert-base-uncased")
    encoders = {}
    for data in ("single-nq", "multiset"):
        asker = f"facebook/dpr-question_encoder-{data}-base"
        encoders[data] = dpr(root / "models" / asker, DPRQuestionEncoder)
        passages = dpr(root / "models" / f"facebook/dpr-ctx_encoder-{data}-base", DPRContextEncoder)
        if data == "single-nq":
            wiki_dpr(root / "datasets/facebook/wiki_dpr", passages, bert_vocabulary())
    bart = bart_large(root / "models/facebook/bart-large")
    bart_base(root / "models/facebook/bart-base")
    for kind in ("token", "sequence"):
        for stage in ("base", "nq"):
            rag(root / f"models/facebook/rag-{kind}-{stage}", kind, encoders["single-nq"], bart)
    questions(root / "datasets")


def write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


# -- tokenizers ----------------------------------------------------------------------------------


def bert_vocabulary() -> list[str]:
    """[PAD], 99 unused ones, the other special ones at their places, letters, words."""
    words = {word for text in SENTENCES for word in BertWordPieceTokenizer().normalize(text.lower()).split()}
    letters = sorted({letter for word in words for letter in word})
    start = [f"[unused{n}]" for n in range(99)]
    return [
        "[PAD]",
        *start,
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
        *sorted(word for word in words if word.isalpha() and len(word) > 1),
    ]


def write_bert_tokenizer(folder: Path, fast: bool, **config: Any) -> None:
    """vocab.txt; with tokenizer.json where `fast`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in bert_vocabulary()))
    write_json(folder / "tokenizer_config.json", {"do_lower_case": True, **config})
    if fast:
        BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True).save(str(folder / "tokenizer.json"))


def write_bart_tokenizer(folder: Path, fast: bool, config: dict[str, Any] | None) -> int:
    """vocab.json and merges.txt, with tokenizer.json where `fast`; the number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        SENTENCES, 400, 2, show_progress=False, special_tokens=["<s>", "<pad>", "</s>", "<unk>"]
    )
    tokenizer.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["<mask>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    if config is not None:
        write_json(folder / "tokenizer_config.json", config)
    if fast:
        files = str(folder / "vocab.json"), str(folder / "merges.txt")
        whole = ByteLevelBPETokenizer(*files, add_prefix_space=False)
        whole.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
        whole._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        whole.save(str(folder / "tokenizer.json"))
    return len(vocabulary)


def special_tokens_map(names: dict[str, str], **more: Any) -> dict[str, Any]:
    return {f"{name}_token": token for name, token in names.items()} | more


# -- models --------------------------------------------------------------------------------------

BERT_KEYS: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}


def bert_config() -> dict[str, Any]:
    return BERT_KEYS | {"vocab_size": len(bert_vocabulary())}


def bert(folder: Path) -> None:
    """BERT of pre-training, whose norms are called gamma and beta: safetensors, and the same as .bin."""
    config = bert_config() | {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "position_embedding_type": "absolute",
        "transformers_version": "4.6.0.dev0",
        "use_cache": True,
    }
    write_json(folder / "config.json", config)
    model = BertForPreTraining(BertConfig(**bert_config() | {"initializer_range": 0.3}))
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): w
        for name, w in model.state_dict().items()
        if name not in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    }
    write_bert_tokenizer(folder, fast=True, model_max_length=512)
    save_file(
        {name: weight.clone() for name, weight in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    torch.save(weights, folder / "pytorch_model.bin")


def dpr(folder: Path, model_class: Any) -> Any:
    """A .bin alone, with the positions' numbers and with BERT's pooler, which DPR does not use."""
    config = bert_config() | {
        "architectures": [model_class.__name__],
        "model_type": "dpr",
        "projection_dim": 0,
    }
    write_json(folder / "config.json", config)
    model = model_class(DPRConfig(**bert_config() | {"initializer_range": 0.3})).eval()
    write_bert_tokenizer(folder, fast=True, model_max_length=512)
    torch.save(with_leftovers(model.state_dict()), folder / "pytorch_model.bin")
    return model


def with_leftovers(weights: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """DPR's weights as they were saved: with what transformers has since dropped."""
    inner = next(
        name.split("bert_model.")[0] for name in weights if name.startswith(prefix) and "bert_model." in name
    )
    pooler = BertModel(BertConfig(**bert_config())).pooler.state_dict()
    positions = torch.arange(BERT_KEYS["max_position_embeddings"]).unsqueeze(0)
    return (
        {f"{inner}bert_model.embeddings.position_ids": positions}
        | weights
        | {f"{inner}bert_model.pooler.{name}": weight for name, weight in pooler.items()}
    )


BART_KEYS: dict[str, Any] = {
    "activation_dropout": 0.1,
    "activation_function": "gelu",
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "attention_dropout": 0.1,
    "bos_token_id": 0,
    "classif_dropout": 0.1,
    "classifier_dropout": 0.0,
    "d_model": WIDTH,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "decoder_layerdrop": 0.0,
    "decoder_layers": 2,
    "decoder_start_token_id": 2,
    "dropout": 0.1,
    "early_stopping": True,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "encoder_layerdrop": 0.0,
    "encoder_layers": 2,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "gradient_checkpointing": False,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
    "init_std": 0.02,
    "is_encoder_decoder": True,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
    "max_position_embeddings": 128,
    "model_type": "bart",
    "no_repeat_ngram_size": 3,
    "normalize_before": False,
    "num_beams": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "scale_embedding": False,
    "task_specific_params": {
        "summarization": {"length_penalty": 1.0, "max_length": 128, "min_length": 12, "num_beams": 4},
        "summarization_cnn": {"length_penalty": 2.0, "max_length": 142, "min_length": 56, "num_beams": 4},
    },
    "use_cache": True,
}


def tiny_bart(vocabulary: int) -> BartForConditionalGeneration:
    keys = ("d_model", "max_position_embeddings", "bos_token_id", "pad_token_id", "eos_token_id")
    sizes = {
        key: value
        for key, value in BART_KEYS.items()
        if key in keys or key.startswith(("encoder_", "decoder_"))
    }
    return BartForConditionalGeneration(BartConfig(**sizes, vocab_size=vocabulary, init_std=0.3))


def bart_large(folder: Path) -> BartForConditionalGeneration:
    """Half tensors of a BartModel in a .bin, no safetensors, and nothing about the type in the config."""
    count = write_bart_tokenizer(folder, fast=True, config=None)
    config = BART_KEYS | {"architectures": ["BartModel"], "vocab_size": count}
    write_json(folder / "config.json", config | {"transformers_version": "4.7.0.dev0"})
    model = tiny_bart(count)
    half = {name: weight.half() for name, weight in model.model.state_dict().items()}
    torch.save(half, folder / "pytorch_model.bin")
    return model


def bart_base(folder: Path) -> None:
    """Safetensors and a .bin in float32, as the config says."""
    count = write_bart_tokenizer(folder, fast=True, config=None)
    config = BART_KEYS | {"architectures": ["BartModel"], "normalize_embedding": True, "vocab_size": count}
    write_json(
        folder / "config.json", config | {"torch_dtype": "float32", "transformers_version": "4.12.0.dev0"}
    )
    model = tiny_bart(count).model
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    weights = {name: w.clone() for name, w in model.state_dict().items() if "embed_tokens" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


# What transformers 3 wrote into every config, and so into both parts of a RAG config.
VERSION_3: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "decoder_start_token_id": None,
    "do_sample": False,
    "early_stopping": False,
    "finetuning_task": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "prefix": None,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "return_dict": False,
    "sep_token_id": None,
    "temperature": 1.0,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "use_bfloat16": False,
    "xla_device": None,
}


def rag(folder: Path, kind: str, encoder: DPRQuestionEncoder, bart: BartForConditionalGeneration) -> None:
    """Both parts with `return_dict: false`, one .bin, the tokenizers' vocabularies in folders of their own."""
    count = write_bart_tokenizer(
        folder / "generator_tokenizer", fast=False, config={"model_max_length": 1024}
    )
    mask = {"content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": True}
    write_json(
        folder / "generator_tokenizer/special_tokens_map.json",
        special_tokens_map(BART_SPECIAL, mask_token=mask),
    )
    write_bert_tokenizer(folder / "question_encoder_tokenizer", fast=False, model_max_length=512)
    write_json(
        folder / "question_encoder_tokenizer/special_tokens_map.json", special_tokens_map(BERT_SPECIAL)
    )
    generator = VERSION_3 | BART_KEYS | {"early_stopping": False, "num_beams": 1, "no_repeat_ngram_size": 0}
    generator |= {"_num_labels": 3, "extra_pos_embeddings": 2, "force_bos_token_to_be_generated": False}
    generator |= {"architectures": ["BartModel", "BartForMaskedLM", "BartForSequenceClassification"]}
    generator |= {
        "do_blenderbot_90_layernorm": False,
        "static_position_embeddings": False,
        "output_past": False,
    }
    generator |= {"vocab_size": count}
    for later in ("forced_bos_token_id", "forced_eos_token_id"):
        generator.pop(later)
    asker = VERSION_3 | bert_config() | {"architectures": ["DPRQuestionEncoder"], "model_type": "dpr"}
    asker |= {"projection_dim": 0, "_num_labels": 2, "bos_token_id": None, "eos_token_id": None}
    write_json(
        folder / "config.json",
        {
            "architectures": [f"Rag{kind.title()}ForGeneration"],
            "dataset": "wiki_dpr",
            "dataset_split": "train",
            "do_deduplication": True,
            "do_marginalize": False,
            "doc_sep": " // ",
            "exclude_bos_score": False,
            "forced_eos_token_id": 2,
            "generator": generator,
            "index_name": "exact",
            "index_path": None,
            "is_encoder_decoder": True,
            "label_smoothing": 0.0,
            "max_combined_length": 300,
            "model_type": "rag",
            "n_docs": 5,
            "output_retrieved": False,
            "passages_path": None,
            "question_encoder": asker,
            "reduce_loss": False,
            "retrieval_batch_size": 8,
            "retrieval_vector_size": WIDTH,
            "title_sep": " / ",
            "use_cache": True,
            "use_dummy_dataset": False,
            "vocab_size": None,
        },
    )
    weights = {f"rag.question_encoder.{name}": weight for name, weight in encoder.state_dict().items()}
    weights = with_leftovers(weights, "rag.question_encoder.")
    weights |= {
        f"rag.generator.{name}": weight
        for name, weight in bart.state_dict().items()
        if name != "lm_head.weight"  # tied, and so never written
    }
    torch.save(weights, folder / "pytorch_model.bin")
