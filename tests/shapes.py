"""The type checker behind jaxtyping's import hook: beartype, for arrays alone.

Other annotations are pyright's business; beartype cannot judge some of them (`Self`, most protocols).
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {
        name: hint if "jaxtyping" in repr(hint) else Any for name, hint in hints.items()
    }
    return beartype(function)
