"""jaxtyping's import hook for what has a shape among its annotations, checked by beartype: arrays alone.

Other annotations are pyright's business; beartype cannot judge some of them (`Self`, most protocols). By itself the
hook wraps every function and checks arguments twice, which takes a fifth of the tests' time.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

one_call = jaxtyping.jaxtyped  # its context: what one call's axes are


def install() -> None:
    """Check the shapes of whatever is imported of rag from now on."""
    jaxtyping.jaxtyped = jaxtyped  # what the hook puts in front of every function and class
    jaxtyping.install_import_hook("rag", None)


def jaxtyped(*, typechecker: None) -> Callable[[Any], Any]:
    return checked


def checked(each: Any) -> Any:
    """A function, a method, a property or a dataclass, whose shapes are checked at each call."""
    if isinstance(each, property):
        return property(*(part and checked(part) for part in (each.fget, each.fset, each.fdel)))
    if isinstance(each, staticmethod | classmethod):
        return type(each)(checked(each.__func__))
    if inspect.isclass(each):
        if "__init__" in vars(each):  # a dataclass's is made after the hook has seen the functions
            each.__init__ = checked(each.__init__)
        return each
    if inspect.isgeneratorfunction(each):  # it begins amid somebody else's call
        return each
    hints = getattr(each, "__annotations__", {})
    if hasattr(each, "checked") or not any(map(_names_a_shape, hints.values())):
        return each
    each.__annotations__ = {name: hint if _names_a_shape(hint) else Any for name, hint in hints.items()}
    judged = beartype(each)
    each.__annotations__ = hints

    @functools.wraps(each)
    def call(*args: Any, **kwargs: Any) -> Any:
        with one_call("context"):
            return judged(*args, **kwargs)

    call.checked = True
    return call


def _names_a_shape(hint: Any) -> bool:
    return "jaxtyping" in repr(hint)
