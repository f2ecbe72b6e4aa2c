"""The console commands of an installed package: rag-ask is python -m rag.ask, and so on (pyproject.toml).

rag-train, rag-evaluate and rag-build-index are rag/commands/. `python -m rag.console train …` is rag-train …, by which
rag/stages.py starts commands where there is no checkout.
"""

import runpy
import sys
from importlib import import_module


def _run(module: str) -> None:
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def ask() -> None:
    _run("rag.ask")


def page() -> None:
    _run("rag.ask.page")


def demo() -> None:
    _run("rag.demo")


def wiki() -> None:
    _run("rag.wiki")


def download() -> None:
    _run("rag.download")


def analysis() -> None:
    _run("rag.analysis")


def compare() -> None:
    _run("rag.compare")


def search() -> None:
    _run("rag.search")


def miniwiki() -> None:
    _run("rag.miniwiki")


if __name__ == "__main__":
    _, name, *arguments = sys.argv
    sys.argv = [f"rag-{name.replace('_', '-')}", *arguments]
    import_module(f"rag.commands.{name}").main()
