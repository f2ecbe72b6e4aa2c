"""Imports that wait, and imports that are quick.

Faces of packages: names that others may import, whose modules are loaded when one of them is first asked for.

`from rag.retrievers import BM25` does not wait for FAISS or Lightning.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def face(package: str, names: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a package: {name: module that has it, without the package}."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"{package} has no {name}: it has {', '.join(sorted(names))}")
        return getattr(import_module(f"{package}.{names[name]}"), name)

    return get, lambda: sorted(names)


@contextmanager
def many_imports() -> Iterator[None]:
    """While torch and transformers are imported: a fifth less time.

    Python's cyclic garbage collector would go through the objects of thousands of modules again and again, which are
    none. They are left out of later collections too.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
