"""Whole models on disk and on the hub, in the format of facebook/rag-token-nq and rag-sequence-nq.

    config.json                   RagConfig: both parts' configs, n_docs, separators, max_combined_length
    model.safetensors             weights, named rag.question_encoder.… and rag.generator.…
    generation_config.json        the generator's own
    question_encoder_tokenizer/   generator_tokenizer/

transformers' RagTokenForGeneration and RagSequenceForGeneration read what is written here, and the other way
round. The index is no part of it. Two keys of config.json are ours: `lowercase_questions` and
`max_target_length`. Where the first is missing, transformers wrote the checkpoint, whose generator was
trained on questions as the question encoder's tokenizer decodes them: in lower case, if that tokenizer knows
no other.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, save_torch_state_dict
from transformers import DPRQuestionEncoder, PreTrainedConfig, RagConfig

from rag import hub
from rag.encoders.dpr import QuestionEncoder
from rag.errors import UserError
from rag.files import write_aside
from rag.generators.pretrained import pretrained_reader
from rag.generators.seq2seq import Generator
from rag.pretrained import check_model_kind, load_weights

N_DOCS = 5  # RagConfig's, where a config does not say; transformers 5.17 makes no RagConfig without its parts


@dataclass(frozen=True)
class Checkpoint:
    """What a folder in this format holds: the two trained parts, the K they were trained with, whose they are."""

    question_encoder: QuestionEncoder
    generator: Generator
    n_docs: int
    architecture: str  # RagTokenForGeneration or RagSequenceForGeneration, "" if the checkpoint does not say


def kind(path: str | Path) -> str | None:
    """The model_type of a folder or hub id by its config; None where it has none, or nothing is there."""
    try:
        return _config(path).get("model_type")
    except (OSError, ValueError):
        return None


def architecture(path: str | Path) -> tuple[str, int]:
    """("RagTokenForGeneration" or "RagSequenceForGeneration", n_docs) of a folder or hub id, from its config alone.

    The first is "" where the checkpoint does not say. Raises UserError where there is no such checkpoint.
    """
    try:
        config = _config(path)
    except (OSError, ValueError) as error:
        raise hub.refusal(error, path) or UserError(
            f"checkpoint={path} is neither a run folder of train.py nor a checkpoint in the format of "
            f"facebook/rag-token-nq ({hub.reason(error)})"
        ) from error
    if (found := config.get("model_type")) != "rag":
        raise UserError(
            f"checkpoint={path} holds {f'a model of type {found}' if found else 'no model'}, not one in the format of "
            "facebook/rag-token-nq, nor is it a run folder of train.py"
        )
    return (config.get("architectures") or [""])[0], config.get("n_docs", N_DOCS)


def load(path: str | Path, **settings: Any) -> Checkpoint:
    """Read a folder or hub id. `settings` are the Generator's and go before those of the checkpoint.

    Weights are read from safetensors, or from a .bin file as tensors and nothing else. Raises UserError where
    there is no such checkpoint, or its weights do not fit its config; weights that no part has are named in a
    warning.
    """
    # Here alone: these bring the hub's datasets and pandas, a second that nobody else needs to wait for.
    from transformers import RagTokenForGeneration, RagTokenizer

    path = str(path)
    what = "RAG checkpoint in the format of facebook/rag-token-nq"
    advice = (
        "give one, or a question encoder and a generator to from_parts (a generator alone is opened by "
        "Generator.from_pretrained)"
    )
    try:
        config_dict = _config(path)
        if (kind := config_dict.get("model_type")) != "rag":
            held = f"a model of type {kind}" if kind else "no model"
            raise UserError(f"{path} holds {held}, not a {what}: {advice}")
        config: Any = RagConfig.from_pretrained(path)
        asker: Any = config.question_encoder
        check_model_kind(asker.model_type, DPRQuestionEncoder, f"the question encoder of {path}")
        model = load_weights(RagTokenForGeneration, path, config=config)
        tokenizers = RagTokenizer.from_pretrained(path, config=config)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise hub.refusal(error, path) or UserError(
            f"{path} holds no complete {what} ({hub.reason(error)}): {advice}"
        ) from error
    saved = {
        "max_context_length": config.max_combined_length,
        "title_separator": config.title_sep,
        "passage_separator": config.doc_sep,
        "prefix": config.prefix or getattr(config.generator, "prefix", None) or "",
        "lowercase_questions": getattr(config, "lowercase_questions", None),
        "max_target_length": getattr(config, "max_target_length", None),
        "question_first": getattr(config, "question_first", None),
        "quote": getattr(config, "quote", None),
    }
    if saved["lowercase_questions"] is None:
        saved["lowercase_questions"] = _lower_cases(tokenizers.question_encoder)
    saved = {name: value for name, value in saved.items() if value is not None}
    parts = model.rag
    parts.generator.generation_config = model.generation_config
    return Checkpoint(
        QuestionEncoder(parts.question_encoder, tokenizers.question_encoder),
        Generator(parts.generator, tokenizers.generator, **(saved | settings)),
        config.n_docs,
        (config.architectures or [""])[0],
    )


def open_generator(path: str | Path | None = None, **settings: Any) -> Generator:
    """The generator of a run folder of train.py, of a checkpoint in this format, or of a folder or hub id that holds
    one alone; None: the reader that comes with the project. settings: `Generator`'s. UserError where there is none.
    """
    if path is None:
        return pretrained_reader(**settings)
    if (Path(path) / "model" / "generator").is_dir():
        return Generator.from_pretrained(Path(path) / "model" / "generator", **settings)
    if (Path(path) / "run.json").exists():
        raise UserError(
            f"{path} holds no generator: it is not finished, or a bi-encoder's run; give a finished run"
        )
    if kind(path) == "rag":
        return load(path, **settings).generator
    return Generator.from_pretrained(path, **settings)


def save(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Write a checkpoint; the folder appears, or is replaced, when it is complete.

    Raises UserError if it cannot be written.
    """
    from transformers import RagTokenizer

    encoder, generator = checkpoint.question_encoder, checkpoint.generator
    special = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id")
    config = RagConfig.from_question_encoder_generator_configs(
        encoder.model.config,
        generator.model.config,
        **{name: getattr(generator.model.config, name, None) for name in special},
        n_docs=checkpoint.n_docs,
        max_combined_length=generator.max_context_length,
        title_sep=generator.title_separator,
        doc_sep=generator.passage_separator,
        prefix=generator.prefix or None,
        retrieval_vector_size=encoder.dim,
        lowercase_questions=generator.lowercase_questions,
        max_target_length=generator.max_target_length,
        question_first=generator.question_first,
        quote=generator.quote,
        architectures=[checkpoint.architecture],
    )
    parts = {"rag.question_encoder": encoder.model, "rag.generator": generator.model}
    weights = {
        f"{name}.{key}": weight.detach()
        for name, part in parts.items()
        for key, weight in part.state_dict().items()
    }
    with write_aside(folder) as aside:
        aside.mkdir()
        config.save_pretrained(aside)
        if (generation_config := getattr(generator.model, "generation_config", None)) is not None:
            generation_config.save_pretrained(aside)
        # Tied weights are written once, by the name that transformers ties the others to.
        tied = [f"rag.generator.{key}" for key in generator.model.all_tied_weights_keys]
        save_torch_state_dict(weights, aside, safe_serialization=True, shared_tensors_to_discard=tied)
        RagTokenizer(encoder.tokenizer, generator.tokenizer).save_pretrained(str(aside))


def push(checkpoint: Checkpoint, name: str, private: bool = False) -> str:
    """Upload a checkpoint to the hub as `name` ("user/model"); returns its address.

    Uses the token of `hf auth login` or HF_TOKEN. Raises UserError if the hub refuses or cannot be reached.
    """
    api = HfApi()
    with TemporaryDirectory() as folder:
        save(checkpoint, Path(folder) / "model")
        try:
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=Path(folder) / "model")
        except (*hub.FAILURES, ValueError) as error:
            raise UserError(
                f"{name} was not uploaded ({hub.reason(error)}): log in with `hf auth login`, and see that the hub can "
                "be reached and HF_HUB_OFFLINE is not set"
            ) from error
    return str(address)


def _config(path: str | Path) -> dict[str, Any]:
    if hub.is_name(str(path)):
        hub.commit(str(path))  # before anything else is asked of a hub that may be out of reach
    return PreTrainedConfig.get_config_dict(str(path))[0]


def _lower_cases(tokenizer: Any) -> bool:
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"
