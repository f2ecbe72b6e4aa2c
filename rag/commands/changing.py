"""What `rag.commands.build_index` does to an index that is there: add, remove, bring up to date, list."""

from datetime import datetime
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from rag.commands.index_parts import held_out_questions, open_encoder, say_cut, show
from rag.compose import plain, reading
from rag.encoders.protocol import AnyPassageEncoder
from rag.encoders.reduced import in_precision
from rag.errors import UserError
from rag.index.editions import tidy
from rag.index.folder import Index
from rag.index.sync import listed_documents, synchronise
from rag.index.update import is_made, read_ids
from rag.reports.finished import complete_index
from rag.reports.run_report import write_run_report
from rag.safe_text import say
from rag.terminal import Terminal


def change(cfg: DictConfig, folder: Path) -> None:
    """Add passages to an index, remove some."""
    index = Index.open(folder)
    how = reading(cfg.corpus)
    removed = _removed(cfg, index)
    if is_made(index.passages, cfg.add, removed, how):
        tidy(folder)
        complete_index(folder)
        show(index, f"{folder} already is what this update makes of it")
        return
    encoder = None
    if cfg.add is not None and (encoder := _encoder_of(cfg, index)) is None:
        mine = index.manifest.encoder
        raise UserError(
            f"{folder} was embedded by {mine.name} (weights {mine.weights}), which is no longer available: give "
            "passage_encoder=… a copy of it"
        )
    parts = [f"adding {cfg.add}"] * (cfg.add is not None)
    parts += [f"removing {removed[0] if len(removed) == 1 else f'{len(removed):,} ids'}"] * bool(removed)
    say(f"{' and '.join(parts)}: {folder} stays in place until its new edition is complete")
    index = index.update(
        cfg.add,
        removed,
        in_precision(encoder, index.manifest.encoder.precision),
        queries=held_out_questions(cfg),
        reading=how,
        batch_size=cfg.batch_size,
    )
    if encoder is not None:
        say_cut(encoder)
    write_run_report(folder)
    show(index, f"index and report.md in {folder}")


def _removed(cfg: DictConfig, index: Index) -> list[str]:
    """What remove= names: documents or ids, or the ids in a file."""
    if cfg.remove is None:
        return []
    if not isinstance(cfg.remove, str):
        names = plain(cfg.remove)
        return [str(name) for name in (names if isinstance(names, list) else [names])]
    name = cfg.remove
    if any(each.name == name for each in index.passages.documents() or []) or not Path(name).is_file():
        return [name]
    return [name] if is_made(index.passages, cfg.add, [name], reading(cfg.corpus)) else read_ids(name)


def _encoder_of(cfg: DictConfig, index: Index) -> AnyPassageEncoder | None:
    """The passage encoder that an index was made by, or a copy of it; None where it is not available."""
    mine = index.manifest.encoder
    for name in dict.fromkeys([mine.name, cfg.passage_encoder]):
        encoder = open_encoder(name, instantiate(cfg.encoder), optional=True)
        if encoder is not None and encoder.describe().may_be(mine):
            return encoder
    return None


def bring_up_to_date(cfg: DictConfig, folder: Path) -> None:
    """Make an index that is there one of its corpus as it is now."""
    if cfg.add is not None or cfg.remove is not None:
        raise UserError("sync=true makes an index what corpus.path holds: give add= and remove= without it")
    index = Index.open(folder)
    encoder = _encoder_of(cfg, index)
    embeds = in_precision(encoder, index.manifest.encoder.precision)
    done = synchronise(
        folder,
        cfg.corpus.path,
        None if embeds is None else embeds.encode,
        None if embeds is None else embeds.describe(),
        reading(cfg.corpus),
        held_out_questions(cfg),
        cfg.batch_size,
        replace_all=bool(cfg.overwrite),
    )
    if encoder is not None:
        say_cut(encoder)
    complete_index(folder) if done.nothing else write_run_report(folder)
    show(Index.open(folder), f"{folder}: {done}")


def list_documents(folder: Path) -> None:
    """Every document of an index: how many passages, when the file was changed last, and the beginning of its hash."""
    documents = listed_documents(folder)
    table = Table("document", "passages", "changed", "sha256", title=f"documents of {folder}")
    for each in documents:
        changed = datetime.fromtimestamp(each.changed_ns / 1e9).isoformat(" ", "seconds")
        table.add_row(each.name, f"{each.passages:,}", changed, each.sha256[:12] or "(in part)")
    Terminal().print(table)
    say(f"{len(documents):,} documents, {sum(each.passages for each in documents):,} passages")
