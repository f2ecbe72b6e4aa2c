"""jaxtyping's import hook for what has a shape among its annotations, and the type checker behind it: beartype, for
arrays alone.

Other annotations are pyright's business; beartype cannot judge some of them (`Self`, most protocols). By itself the
hook wraps every function, which makes each call of the smallest ten microseconds longer: a tenth of the tests' time.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

wrapped = jaxtyping.jaxtyped


def install() -> None:
    """Check the shapes of whatever is imported of rag from now on."""
    jaxtyping.jaxtyped = jaxtyped  # what the hook puts in front of every function and class
    jaxtyping.install_import_hook("rag", "shapes.check")


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda each: wrapped(each, typechecker=typechecker) if has_shapes(each) else each


def has_shapes(each: Any) -> bool:
    """Whether an annotation of a function, a method, a property or a class's constructor names a shape."""
    if isinstance(each, property):
        return any(has_shapes(function) for function in (each.fget, each.fset, each.fdel) if function)
    if isinstance(each, staticmethod | classmethod):
        return has_shapes(each.__func__)
    if inspect.isclass(each):
        return "__init__" in vars(each) and has_shapes(each.__init__)
    return any(isinstance(hint, str) or is_shape(hint) for hint in _annotations(each).values())


def is_shape(hint: Any) -> bool:
    return "jaxtyping" in repr(hint)


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__annotations__ = {
        name: hint if is_shape(hint) else Any for name, hint in _annotations(function).items()
    }
    return beartype(function)


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    return getattr(function, "__annotations__", {})
