"""The processes of one command: those that torchrun or SLURM's srun started, one if nothing says otherwise."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rag.errors import UserError

MEETING = timedelta(minutes=10)  # until all have come: one that died before would be waited for all the same
WORKING = timedelta(days=30)  # embedding Wikipedia takes days on few cores; one that dies is noticed at once
_patient: Any = None  # the group of processes that wait for each other's work


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """Yield (this process's number, how many there are), having met the others; part from them at the end.

    Raises UserError where there should be several and nothing says where they meet.
    """
    number, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    where = "env://"
    if "RANK" not in os.environ and (slurm := _slurm()) is not None:
        number, count = slurm.global_rank(), slurm.world_size()
        where = f"tcp://{slurm.main_address}:{slurm.main_port}"
    if count == 1:
        yield 0, 1
        return
    if where == "env://" and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE={count} but MASTER_ADDR is not set, so the processes cannot meet: start them with "
            f"torchrun --nproc-per-node={count}, or unset WORLD_SIZE"
        )
    global _patient
    dist.init_process_group("gloo", init_method=where, rank=number, world_size=count, timeout=MEETING)
    _patient = dist.new_group(timeout=WORKING)
    try:
        yield number, count
    finally:
        _patient = None
        dist.destroy_process_group()


def _slurm() -> Any:
    """Lightning's view of the tasks that srun started; None without them, so that a command that trains nothing does not
    wait a second for Lightning and what it imports (torchmetrics, SciPy, Matplotlib)."""
    if "SLURM_NTASKS" not in os.environ:
        return None
    from lightning_fabric.plugins.environments import SLURMEnvironment

    return SLURMEnvironment() if SLURMEnvironment.detect() else None


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier(group=_patient)


def lost_another(error: RuntimeError) -> bool:
    """Whether an error says that another process of this command is gone, not that something is wrong in this one."""
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    # gloo's errors are of no type of their own, and NCCL's are of one for everything
    told = str(error)
    of_gloo = "gloo" in told and re.search(r"Connection (closed|reset) by|Broken pipe|Socket closed", told)
    of_nccl = isinstance(error, dist.DistBackendError) and "remote process exited" in told
    return bool(of_gloo or of_nccl)


def local_device() -> torch.device:
    """The GPU of this process among those of its machine, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def cpu_has_bfloat16() -> bool | None:
    """Whether the processor multiplies in bfloat16, rather than emulating it several times slower than float32; None
    where torch does not know."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", None)
    has = {} if capabilities is None else capabilities()
    if has.get("architecture") != "x86_64":
        return None
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
