"""Products with weights in float32 on a CPU, by whichever of torch's two libraries is faster on it.

torch multiplies by MKL, which on AMD's processors is half as fast as oneDNN, which torch brings as well (docs/log.md
has the figures). `quicken` lets the linear layers of a model take the latter there. They stay the `nn.Linear`s that
they are, with the same parameters, and their outputs differ by float32's rounding alone. On other processors, on a GPU,
in other dtypes and under autocast nothing changes.
"""

from functools import cache
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
# The multiplications from which oneDNN is faster; what a smaller product saves is less than what the call costs.
LEAST_WORK = 1 << 20


@cache
def prefers_onednn() -> bool:
    """Whether this processor multiplies float32 faster by oneDNN than by MKL, and torch can be asked for it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(maker in text for maker in ("AuthenticAMD", "HygonGenuine"))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: (*rows, in), (out, in), (out) -> (*rows, out), with its gradients."""
    if (
        torch.jit.is_tracing()  # for another engine
        or torch.compiler.is_compiling()
        or x.device.type != "cpu"
        or not prefers_onednn()
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.numel() * weight.shape[0] < LEAST_WORK
        or torch.is_autocast_enabled("cpu")
    ):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)  # type: ignore[return-value]
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b by oneDNN, without a gradient. This is the name under which torch's own compiler asks for it."""
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(values: Tensor) -> Tensor:
    """The same without gaps between rows or columns, such as a state of each sequence has: oneDNN multiplies those
    hundreds of times as slowly as it should where both factors are transposed."""
    if values.is_contiguous() or (values.dim() == 2 and values.t().is_contiguous()):
        return values
    return values.contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _product(gradient, weight.t()) if of_x else None,
            _product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


class QuickLinear(nn.Linear):
    """An `nn.Linear` that multiplies by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is an `nn.Linear` and nothing more: no adapter, no subclass of somebody's."""
    return type(module) in (nn.Linear, QuickLinear)


def quicken(model: Module) -> Module:
    """Let every `nn.Linear` of a model multiply by `linear`; the same model."""
    if prefers_onednn():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = QuickLinear
    return model
