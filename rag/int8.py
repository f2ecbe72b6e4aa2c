"""Products in 8 bits on a CPU, for answering and embedding, not for training: int8=true.

    y = W x + b  ≈  s_x · s_w ⊙ (W₈ x₈) + b

W₈ are the weights in 8 bits with a scale s_w for each of their rows, made once; x₈ is x in 8 bits with a scale s_x for
each x, made as it comes (dynamic quantisation); both are symmetric, and their products are added up in 32 bits. What is
no product with weights (attention, layer norms, embeddings, the softmax over the vocabulary) stays float32.
"""

import torch
from torch import Tensor, nn

from rag.errors import UserError
from rag.products import is_plain_linear

_SMALLEST = 16  # inputs and outputs of a layer from which it gains; torch's product is wrong for one input
_LEAST = 1e-30  # a scale that can be divided by, where all is zero


class Int8Linear(nn.Module):
    """What an `nn.Linear` of float32 computes, with weights and inputs in 8 bits. It is not trained or saved."""

    rounded: Tensor
    scales: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(dim=1) / 127).clamp(min=_LEAST)
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("rounded", (weight / scales.unsqueeze(1)).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features), float32, unpacked at each call: for who reads weights rather than calls."""
        return self.rounded * self.scales.unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).float()
        scale = (rows.abs().amax(dim=1, keepdim=True) / 127).clamp(min=_LEAST)
        # the product of int8 and int8 into int32, which torch has for quantisers under this name alone
        product = torch._int_mm((rows / scale).round_().to(torch.int8), self.rounded.t())
        y = torch.addcmul(self.bias, torch.mul(product, scale), self.scales)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def to_int8(module: nn.Module) -> int:
    """Replace every `nn.Linear` below `module`, in place, by an `Int8Linear`; how many.

    Subclasses, such as those of bitsandbytes, and the smallest layers are left as they are. Raises UserError on a GPU,
    which has half precision for the same, and where there is nothing to replace.
    """
    if torch.backends.quantized.engine == "none":
        raise UserError(
            "int8=true needs a torch that multiplies in 8 bits, and this one does not: leave it out"
        )
    places: list[tuple[nn.Module, str, nn.Linear]] = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if is_plain_linear(child) and min(child.in_features, child.out_features) >= _SMALLEST
    ]
    if any(child.weight.device.type != "cpu" for _, _, child in places):
        raise UserError("int8=true is for a CPU: leave it out on a GPU, which is faster without")
    if not places:
        raise UserError("int8=true found no linear layer to take in 8 bits in this model: leave it out")
    made: dict[nn.Linear, Int8Linear] = {}  # a layer that stands in several places stays one
    for parent, name, child in places:
        if child not in made:
            made[child] = Int8Linear(child)
        setattr(parent, name, made[child])
    return len(made)
