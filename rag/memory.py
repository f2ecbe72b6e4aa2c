"""How much is computed at once: what a machine's memory is good for, and no more."""

import torch


def numbers_at_once(device: torch.device | str, elsewhere: int, share: int) -> int:
    """How many numbers may be held at once on a device: on a CUDA GPU as many as a `share`-th of the bytes it has,
    `elsewhere` on all others, where little at once stays in caches and memory is what else the machine is used for."""
    device = torch.device(device)
    if device.type != "cuda":
        return elsewhere
    return torch.cuda.get_device_properties(device).total_memory // share
