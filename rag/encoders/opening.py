"""The one place where an encoder is opened: what a folder or a repository on the hub says of itself decides how.

encoder.json                        a class that the folder names
modules.json                        sentence-transformers' format
config.json of model_type dpr       DPR's encoders
config.json of another model_type   a transformer, whose pooling the settings must state
"""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedConfig

from rag import hub
from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.encoders.named_class import ENCODER_FILE, opener_of
from rag.encoders.pooling import POOLINGS
from rag.encoders.sentence_format import MODULES, SentenceFormat, local_copy, read_format
from rag.encoders.sentence_transformer import (
    Embedder,
    SentencePassageEncoder,
    SentenceQuestionEncoder,
    check_kind,
)
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.minilm import at_hand
from rag.pretrained import check_files

_AS_THEY_ARE = EncoderSettings()


def open_question_encoder(path: str | Path, settings: EncoderSettings | None = None) -> Any:
    """q(x), an AnyQuestionEncoder and nn.Module, from a folder or hub id.

    Raises UserError where there is none, or it is of a kind that is not read.
    """
    if (opener := opener_of(path, "question")) is not None:
        _refuse(settings or _AS_THEY_ARE, path, f"an encoder that {ENCODER_FILE} opens")
        return opener(path)
    embedder = _embedder(path, settings or _AS_THEY_ARE)
    return QuestionEncoder.from_pretrained(path) if embedder is None else SentenceQuestionEncoder(embedder)


def open_passage_encoder(path: str | Path, settings: EncoderSettings | None = None) -> Any:
    """d(z), an AnyPassageEncoder and nn.Module, from a folder or hub id.

    Raises UserError where there is none, or it is of a kind that is not read.
    """
    if (opener := opener_of(path, "passage")) is not None:
        _refuse(settings or _AS_THEY_ARE, path, f"an encoder that {ENCODER_FILE} opens")
        return opener(path)
    embedder = _embedder(path, settings or _AS_THEY_ARE)
    if embedder is None:
        return PassageEncoder.from_pretrained(path)
    return SentencePassageEncoder(embedder, str(path))


def open_embedder(path: str | Path, settings: EncoderSettings | None = None) -> Embedder:
    """What both sides can share or copy. Raises UserError for DPR's encoders, of which each is one side alone."""
    embedder = _embedder(path, settings or _AS_THEY_ARE)
    if embedder is None:
        raise UserError(
            f"{path} holds no encoder for both sides: give a folder in sentence-transformers' format, or a "
            f"transformer and encoder.pooling={', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}"
        )
    return embedder


def _embedder(path: str | Path, settings: EncoderSettings) -> Embedder | None:
    """None where DPR's classes read it, or say why they do not."""
    path = at_hand(path)
    if _has_modules(path):
        folder = local_copy(path)
        form, transformer = read_format(folder, settings)
        return Embedder.from_pretrained(transformer, form)
    check_files(path)
    try:
        kind = PreTrainedConfig.get_config_dict(str(path))[0].get("model_type")
    except (OSError, ValueError):
        return None
    if kind in (None, "dpr"):
        _refuse(settings, path, "an encoder of DPR's")
        return None
    check_kind(kind, path)
    if settings.pooling is None:
        raise UserError(
            f"{path} holds a model of type {kind} that does not say how its states become one vector: give "
            f"encoder.pooling={', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}, or a folder in sentence-transformers' "
            "format"
        )
    for side in ("question", "passage"):
        if (name := getattr(settings, f"{side}_prompt_name")) is not None:
            raise UserError(
                f"encoder.{side}_prompt_name={name} is given, but {path} holds no prompts: "
                f"give the text itself as encoder.{side}_prompt"
            )
    return Embedder.from_pretrained(path, SentenceFormat(settings.pooling).with_settings(settings))


def _refuse(settings: EncoderSettings, path: str | Path, kind: str) -> None:
    """UserError where settings are given for an encoder that takes none."""
    if given := settings.given:
        name, value = next(iter(given.items()))
        raise UserError(
            f"encoder.{name}={value} is given, but {path} holds {kind}, which needs no settings: remove that one"
        )


def _has_modules(path: str | Path) -> bool:
    if not hub.is_name(str(path)):
        return (Path(path) / MODULES).is_file()
    hub.commit(str(path))
    try:
        hf_hub_download(str(path), MODULES)
    except EntryNotFoundError:  # not there, or the hub is out of reach and it was not downloaded
        return False
    except (*hub.FAILURES, ValueError) as error:
        if (refusal := hub.refusal(error, path)) is not None:
            raise refusal from error
        return False
    return True
