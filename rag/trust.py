"""What a file that came with a model may have made: parts of this project, and nothing else unless it is trusted.

A run's config.yaml and model.json name classes and functions as `_target_`, which hydra.utils.instantiate calls with
the arguments beside them. Any importable function would do, also one that unpickles a file or starts a program, so that
opening somebody's folder would run somebody's code.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.runs import CONFIGS

VARIABLE = "RAG_TRUST"
# Parts that a model's description names and no configuration of ours does.
_OTHERS = (
    "rag.ClosedBook",
    "rag.RagSequence",
    "rag.RagToken",
    "rag.classify.TokenClassifier",
    "rag.encoders.PassageEncoder",
    "rag.encoders.QuestionEncoder",
    "rag.retrievers.DenseRetriever",
    "rag.retrievers.Jaccard",
    "rag.scratch.one_layer.OneLayerPassageEncoder",
    "rag.scratch.one_layer.OneLayerQuestionEncoder",
    "rag.retrievers.TfIdf",
)
_MAKES = (".from_pretrained", ".over", ".build", "")  # what makes an object of a class


def check_targets(node: Any, where: str | Path, trust: bool | None = False) -> None:
    """UserError for a `_target_` in plain containers that is no part of this project's.

    trust: whoever asks knows where the folder is from (trust=true); None where that setting does not reach. The
    environment variable RAG_TRUST=1 says the same for everything that is opened.
    """
    if trust or os.environ.get(VARIABLE) == "1":
        return
    for target in _targets(node):
        if target not in _known():
            way = f"set {VARIABLE}=1" if trust is None else f"give trust=true, or set {VARIABLE}=1"
            raise UserError(
                f"{where} names {target}, which is no part of this project and could run any code: if you trust where "
                f"it is from, {way}"
            )


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for each in node.values():
            yield from _targets(each)
    elif isinstance(node, list):
        for each in node:
            yield from _targets(each)


@cache
def _known() -> frozenset[str]:
    """What the project's configurations name, with the other ways to make an object of the same class."""
    found = set(_OTHERS)
    for file in CONFIGS.rglob("*.yaml"):
        found |= set(re.findall(r"_target_: *(rag\.[\w.]+)", file.read_text(encoding="utf-8")))
    bases = {re.sub(rf"({'|'.join(map(re.escape, _MAKES[:-1]))})$", "", target) for target in found}
    makers = {f"{base}{way}" for base in bases if base.rpartition(".")[2][0].isupper() for way in _MAKES}
    return frozenset(found | makers)
