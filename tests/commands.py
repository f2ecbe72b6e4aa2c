"""The scripts as they are typed, called in this process."""

import importlib
import sys


def run(script: str, *arguments: str) -> int:
    """What `python SCRIPT.py ARGUMENTS` exits with."""
    before = sys.argv
    sys.argv = [f"{script}.py", *arguments]
    try:
        importlib.import_module(script).main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        sys.argv = before
    return 0
