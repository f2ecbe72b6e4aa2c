"""Opening causal language models: which are read, and what is wrong with those that are not."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rag import hub
from rag.errors import UserError, one_line
from rag.generators.seq2seq import Generator
from rag.pretrained import load_weights

GGUF = ".gguf"
# Kinds that tests/test_causal.py holds against the plain model. Others are read if `check_reads` finds that they do the
# same.
KINDS = (
    *(
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "gptj",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "opt",
        "phi",
    ),
    *("phi3", "qwen2", "qwen3", "smollm3", "starcoder2"),
)


def load_causal(
    path: str | Path,
    dtype: str,
    quantize: str | None = None,
    tokenizer_path: str | Path | None = None,
    pad_token: str | None = None,
    eos_token: str | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, from a folder, a hub id or a file in GGUF's format."""
    settings: dict[str, Any] = {}
    folder = Path(path)
    of_file: dict[str, Any] = {}
    if folder.suffix == GGUF:
        if find_spec("gguf") is None:
            raise UserError(f"{path} needs gguf, which is not installed: pip install gguf")
        folder, of_file = folder.parent, {"gguf_file": folder.name}
    if quantize is not None:
        settings["quantization_config"] = _four_bits(quantize, dtype)
    source = str(folder) if of_file else str(path)
    try:
        kind = PreTrainedConfig.get_config_dict(source, **of_file)[0]
        _check_kind(kind, path)
        model = load_weights(AutoModelForCausalLM, source, dtype, **settings, **of_file)
        if tokenizer_path is not None and (Path(tokenizer_path) / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, **of_file)
    except (OSError, ValueError) as error:
        raise hub.refusal(error, path) or UserError(
            f"{path} holds no causal language model with its tokenizer ({hub.reason(error)}): give a folder written by "
            "save_pretrained, a file in GGUF's format or the name of a model on the hub"
        ) from error
    if quantize is not None:
        model.requires_grad_(False)
    for name, token in (("pad_token", pad_token), ("eos_token", eos_token)):
        if token is not None:
            if token not in tokenizer.get_vocab():
                raise UserError(f"generator.{name}={token} is no token of {path}: give one of its vocabulary")
            setattr(tokenizer, name, token)
    return model, tokenizer


def let_gradients_through(model: Any) -> None:
    """Keep bitsandbytes' four bits as they are stored.

    On some CPUs it packs them anew at the first pass in evaluation mode, for a product that has no gradient, and leaves
    them so in training.
    """
    from bitsandbytes.nn import Linear4bit  # pyright: ignore[reportMissingImports]

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def mark(tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError where a tokenizer has no mark for padding or for an answer's end."""
    for name, what in (("eos_token", "end-of-sequence"), ("pad_token", "padding")):
        if getattr(tokenizer, name) is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path} has no {what} token: name one of its own as generator.{name}"
                + (f", such as {tokenizer.eos_token}" if tokenizer.eos_token else "")
            )


def _four_bits(quantize: str, dtype: str) -> BitsAndBytesConfig:
    if quantize != "4bit":
        raise UserError(f"generator.quantize={quantize} does not exist: there is 4bit, or leave it out")
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "generator.quantize=4bit needs bitsandbytes, which is not installed: pip install bitsandbytes, or leave "
            "the setting out"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
    )


def _check_kind(config: dict[str, Any], path: str | Path) -> None:
    kind: Any = config.get("model_type")
    if config.get("is_encoder_decoder"):
        raise _not_read(kind, path)
    if kind not in CONFIG_MAPPING:
        return  # transformers says what it knows of it
    known = CONFIG_MAPPING[kind]
    # transformers gives an encoder such as BERT a causal head as well, which none that fills masks was trained with.
    fills_masks = known in MODEL_FOR_MASKED_LM_MAPPING and not config.get("is_decoder")
    if known not in MODEL_FOR_CAUSAL_LM_MAPPING or fills_masks:
        raise _not_read(kind, path)


def _not_read(kind: Any, path: str | Path, why: str = "") -> UserError:
    because = f" ({why})" if why else ""
    return UserError(
        f"{path} holds a model of type {kind}, which is not read as a causal language model{because}: types such as "
        f"{', '.join(KINDS)} are"
    )


@torch.no_grad()
def check_reads(generator: Generator) -> None:
    """UserError unless the model scores an answer the same with its prompt read before as in one pass of its own.

    Whatever a model does otherwise than is read here shows in this: states instead of keys, a cap on the logits, biases
    that go by the place in a row, a window of attention that its config does not name. Prompts are therefore as long as
    they may be.
    """
    model, device = generator.model, generator.model.device
    longest, answer = generator.max_context_length - 1, min(3, generator.max_target_length)
    vocabulary = model.get_input_embeddings().num_embeddings
    drawn = (
        torch.arange(1, 2 * (longest + answer) + 1, device=device).pow(2).remainder(vocabulary).view(2, -1)
    )
    lengths = torch.tensor([longest, max(1, longest // 2)], device=device)
    mask = torch.arange(longest, device=device) < lengths.unsqueeze(1)
    mode = model.training
    model.eval()
    try:
        keys = generator.encode(drawn[:, :longest], mask)
        ours = generator.output_layer.logits(generator.decode(drawn[:, longest:], keys, mask)).float()
        for row, length in enumerate(lengths.tolist()):
            whole = torch.cat([drawn[row, :length], drawn[row, longest:]]).unsqueeze(0)
            states = model(input_ids=whole, attention_mask=torch.ones_like(whole), logits_to_keep=answer)
            theirs = states.logits[0, -answer:].float()
            tolerance = 3e-2 if model.dtype in (torch.bfloat16, torch.float16) else 1e-3
            if not torch.allclose(
                ours[row], theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())
            ):
                raise ValueError("its scores are others when a prompt was read before")
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise _not_read(
            model.config.model_type, generator.tokenizer.name_or_path, one_line(str(error))
        ) from error
    finally:
        model.train(mode)
