"""The scripts' own functions, called in this process with a command line."""

import importlib
import sys

from rag.cli import run_script


def run(script: str, *arguments: str) -> int:
    """What `python SCRIPT.py ARGUMENTS` exits with."""
    module = importlib.import_module(script)
    before = sys.argv
    sys.argv = [f"{script}.py", *arguments]
    try:
        run_script(script, module.USAGE, getattr(module, script))
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        sys.argv = before
    return 0
