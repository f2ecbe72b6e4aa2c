"""From a run of experiment=wiki/pretrained_reader to pretrained/reader/: python scripts/pack_reader.py RUN [FOLDER]

Half-precision weights without the word embeddings, which are all-MiniLM-L6-v2's; the card, README.md, stays as it is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rag.cli import mistakes_in_one_sentence
from rag.errors import UserError
from rag.generators.pretrained import FOLDER, save_reader
from rag.generators.seq2seq import Generator


def main(arguments: list[str]) -> None:
    if not 1 <= len(arguments) <= 2:
        raise UserError("give the run's folder: python scripts/pack_reader.py outputs/wiki/pretrained_reader")
    folder = Path(arguments[1]) if len(arguments) > 1 else FOLDER
    save_reader(Generator.from_pretrained(Path(arguments[0]) / "model" / "generator"), folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    with mistakes_in_one_sentence():
        main(sys.argv[1:])
