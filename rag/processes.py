"""The processes of one command, as torchrun starts them: number RANK of WORLD_SIZE, one if nothing says otherwise."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from rag.errors import UserError


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """Yield (this process's number, how many there are), having met the others; part from them at the end.

    Raises UserError where there should be several and nothing says where they meet.
    """
    number, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield 0, 1
        return
    if "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE={count} but MASTER_ADDR is not set, so the processes cannot meet: start them with "
            f"torchrun --nproc-per-node={count}, or unset WORLD_SIZE"
        )
    dist.init_process_group("gloo", timeout=timedelta(days=30))  # embedding Wikipedia takes days on few cores
    try:
        yield number, count
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier()
