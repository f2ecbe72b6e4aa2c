"""A tiny reader with random weights as a folder, and folders of documents."""

from pathlib import Path

import torch
from conftest import SENTENCES, bert_tokenizer
from transformers import BertConfig, BertModel

from rag.generators.reader import new_reader

NOTES = {
    "lighthouse.md": "# The lighthouse of Varne\n\nIt burned *whale oil*. The cliff is high.\n\n## Building\n\n"
    "The lighthouse was built in 1834 by the engineer Thomas Aldous. He died in 1850.\n",
    "animals/otter.txt": "An otter eats fish and crabs. Its fur keeps the cold out even under ice.\n",
    "maria-kestrel.md": "## Life\n\nMaria Kestrel was a botanist.\n\n## Work\n\nShe described [forty mosses](m.md).\n",
}


def write_notes(folder: Path, notes: dict[str, str] | None = None) -> Path:
    for name, text in (NOTES if notes is None else notes).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def tiny_reader(folder: Path) -> Path:
    """A reader over the words of NOTES and the tests' own sentences, not trained."""
    tokenizer = bert_tokenizer([*SENTENCES, *NOTES.values()])
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    new_reader(folder / "bert", max_context_length=60).save_pretrained(folder / "reader")
    return folder / "reader"
