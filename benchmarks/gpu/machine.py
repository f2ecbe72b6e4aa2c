"""What the parts ran on: card, versions, date and commit."""

import os
import platform
from datetime import UTC, datetime

import torch
import transformers

from benchmarks.gpu.setting import Setting
from rag.files import read_json
from rag.runs import git_commit


def run(setting: Setting) -> int:
    if setting.device == "cuda":
        card, memory = torch.cuda.get_device_name(), setting.memory / 1e9
    else:
        card, memory = f"no GPU ({platform.machine()}), a dry run of tiny sizes", None
    commit = os.environ.get("COMMIT") or git_commit()
    source = setting.prepared / "settings.json"
    if commit == "unknown" and source.is_file():  # a copy without its history
        commit = f"{read_json(source)['commit']} at the latest `prepare`"
    metrics = {
        "card": card,
        "memory_gb": memory,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    setting.tell("machine", metrics)
    return 0
