"""Where training curves go beside the CSV file."""

import netrc
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger


def wandb(project: str, name: str, folder: str, **settings: Any) -> WandbLogger:
    """Weights & Biases: online for whoever is logged in, otherwise into `folder`, to be sent by `wandb sync`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return WandbLogger(project=project, name=name, save_dir=folder, offline=not logged_in(), **settings)


def logged_in() -> bool:
    """Whether an API key is at hand, in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)
