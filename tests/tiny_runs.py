"""Run folders as train.py leaves them, of tiny models with random weights."""

from pathlib import Path

import torch
from conftest import bert_tokenizer, tiny_bart, tiny_question_encoder, word_tokenizer
from omegaconf import OmegaConf

from rag.compose import compose_config
from rag.encoders.dpr import QuestionEncoder
from rag.files import write_json
from rag.generators.seq2seq import Generator
from rag.index.folder import Index


def write_run(folder: Path, model: str, index: Index, retriever: str = "dense", n_docs: int = 3) -> Path:
    """A finished run of `model` ("rag_token", …) over an index; the same weights each time."""
    torch.manual_seed(3)
    tokenizer = word_tokenizer()
    Generator(tiny_bart(len(tokenizer)), tokenizer).save_pretrained(folder / "model" / "generator")
    tokenizer = bert_tokenizer()
    encoder = tiny_question_encoder(len(tokenizer), passage_encoder=index.manifest.encoder.weights)
    QuestionEncoder(encoder, tokenizer).save_pretrained(folder / "model" / "question_encoder")
    settings = [
        "experiment=null",
        f"name={folder.name}",
        f"model={model}",
        f"retriever={retriever}",
        f"n_docs={n_docs}",
        f"index.path={index.folder}",
        f"paths.indexes={folder.parent / 'indexes'}",
        f"paths.outputs={folder.parent}",
        "decoding.max_new_tokens=6",
        "trainer.max_steps=1",
    ]
    cfg = compose_config("train", settings)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    write_json(folder / "result.json", {})
    return folder
