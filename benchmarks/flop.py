"""FLOP of the matrix products that a forward pass needs for its real tokens, attention's included: what utilisation is
counted in. Training needs three times as many; what is computed again in the backward pass does not count."""

from torch import Tensor

from benchmarks import world


def generator_flop(size: world.Size, contexts: Tensor, targets: Tensor, docs: int) -> float:
    """FLOP of matrix products in one forward pass over contexts and targets of these lengths, attention's included."""
    d, layers = size.hidden, size.layers
    read = contexts.double()
    written = targets.double().repeat_interleave(docs)
    encoder = layers * (24 * d * d * read + 4 * d * read**2)
    keys = layers * 4 * d * d * read
    decoder = layers * (28 * d * d * written + 4 * d * written * (written + read))
    return float((encoder + keys + decoder + 2 * d * world.VOCABULARY * written).sum())


def encoder_flop(size: world.Size, lengths: Tensor) -> float:
    """The same of the question or the passage encoder."""
    d, lengths = size.question_hidden, lengths.double()
    return float((size.question_layers * (24 * d * d * lengths + 4 * d * lengths**2)).sum())
