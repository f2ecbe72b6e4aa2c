"""What commands can say of their corpus before what takes seconds to import."""

from pathlib import Path

from omegaconf import DictConfig

from rag.errors import UserError


def check_corpus(path: str) -> None:
    """UserError for a corpus that is not there."""
    if not Path(path).exists():
        from rag.index.corpus_files import FORMATS

        raise UserError(f"{path} does not exist: give corpus.path={FORMATS}")


def fetch_corpus(cfg: DictConfig) -> None:
    """Write out the dataset of ir_datasets that corpus=ir_datasets names, unless it is there."""
    if "id" not in cfg.corpus:  # nor where it was not given, which is told where the corpus is read
        return
    from rag.tasks.ir_datasets import export

    export(str(cfg.corpus.id), Path(cfg.corpus.folder))


def makes_the_encoder(cfg: DictConfig) -> bool:
    """Whether the passage encoder, and with it the corpus, is what the demo's stages make first."""
    trained = Path(cfg.passage_encoder)
    return bool(cfg.needs) and not trained.exists() and trained.is_relative_to(cfg.paths.demo)
