"""Build the index of a corpus, offline and once: python build_index.py corpus.path=… passage_encoder=… key=value …"""

from pathlib import Path

from rag.cli import compose_command, many_imports, mistakes_as_user_errors, quieten, run_command
from rag.commands.corpus import check_corpus, fetch_corpus, makes_the_encoder
from rag.compose import resolved
from rag.encoders.precisions import chosen_precision

USAGE = """
python build_index.py [experiment=NAME] [key=value …]

Reads a corpus, embeds its passages and builds a FAISS index over them in the folder index.path. Rerun the same command
to resume; a finished index is left alone.

  python build_index.py experiment=miniwiki/index_a
  python build_index.py corpus.path=my.tsv passage_encoder=outputs/…/passage_encoder index.path=indexes/mine
  python build_index.py … index=hnsw                         another type of index; index=milvus: into a Milvus server
  python build_index.py … bfloat16=true                      embed faster on a CPU; likewise int8=true, openvino=true
  python build_index.py … estimate=true                      estimate disk, memory and hours, and stop
  python build_index.py experiment=null corpus=wiki_dpr      take over the hub's vectors instead of encoding
  python build_index.py experiment=null corpus=wiki_dpr index=wiki_dpr_hnsw_sq8      and its FAISS file
  python build_index.py corpus.path=docs index.path=indexes/docs sync=true          embed what is new or changed
  python build_index.py index.path=indexes/mine add=more.tsv remove=ids.txt          update an index; also remove=a.md
  python build_index.py index.path=indexes/docs list=true    list the documents of an index
  python build_index.py index.path=indexes/mine verify=true  read every byte: is it as it was written?
  python build_index.py … overwrite=true                     replace an index of another corpus, encoder or type
  torchrun --nproc-per-node=4 build_index.py …               four processes share the embedding
"""


@mistakes_as_user_errors()
def build_index(*overrides: str) -> Path:
    """`python build_index.py` with these overrides, from Python; the index's folder.

    Raises UserError for what the command would tell as a mistake.
    """
    cfg = resolved(compose_command("build_index", list(overrides)))
    chosen_precision(bfloat16=cfg.bfloat16, int8=cfg.int8, openvino=cfg.openvino)
    fetch_corpus(cfg)
    looks = cfg.verify or cfg.list or cfg.add is not None or cfg.remove is not None
    if not looks and not makes_the_encoder(cfg):
        check_corpus(cfg.corpus.path)
    with many_imports():
        from rag.commands import indexing  # what takes seconds to import, after what is told at once

        quieten()
    return indexing.build_index(cfg)


def main() -> None:
    """The command itself: a mistake is one sentence and exit code 2."""
    run_command("build_index", USAGE, build_index)
