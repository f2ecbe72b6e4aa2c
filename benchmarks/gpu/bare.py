"""A machine that has nothing but what the parts need: a dry run hides the rest, so that none of it is needed unseen."""

import importlib.metadata
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

# Packages of pyproject.toml that the parts do without, by what they are imported and installed as.
HIDDEN = {
    "faiss": "faiss-cpu",
    "datasets": "datasets",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "wandb": "wandb",
    "pandas": "pandas",
    "matplotlib": "matplotlib",
    "bm25s": "bm25s",
    "Stemmer": "PyStemmer",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "sacrebleu": "sacrebleu",
    "rouge_score": "rouge-score",
    "nltk": "nltk",
    "gradio": "gradio",
    "beartype": "beartype",
    "hypothesis": "hypothesis",
}


def hide() -> None:
    """From here on none of HIDDEN can be imported, found, or asked for its version in this process."""
    find, distribution = PathFinder.find_spec, importlib.metadata.Distribution.from_name
    installed = {name.lower().replace("_", "-") for name in HIDDEN.values()}

    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in HIDDEN else find(name, path, target)

    def from_name(name: str) -> importlib.metadata.Distribution:
        if name.lower().replace("_", "-") in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return distribution(name)

    PathFinder.find_spec = staticmethod(find_spec)  # type: ignore[method-assign, assignment]
    importlib.metadata.Distribution.from_name = staticmethod(from_name)  # type: ignore[method-assign, assignment]
