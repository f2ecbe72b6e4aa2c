"""What build_index.py can say of its corpus before what takes seconds to import."""

from pathlib import Path

from omegaconf import DictConfig

from rag.errors import UserError


def check_corpus(path: str) -> None:
    """UserError for a corpus that is not there."""
    if not Path(path).exists():
        from rag.index.corpus_files import FORMATS

        raise UserError(f"{path} does not exist: give corpus.path={FORMATS}")


def makes_the_encoder(cfg: DictConfig) -> bool:
    """Whether the passage encoder, and with it the corpus, is what the demo's stages make first."""
    trained = Path(cfg.passage_encoder)
    return bool(cfg.needs) and not trained.exists() and trained.is_relative_to(cfg.paths.demo)
