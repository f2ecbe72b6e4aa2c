"""Section 2.4: Adam with a learning rate for each part of the model, warm-up and decay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import SchedulerType, get_scheduler

from rag.errors import UserError
from rag.parts import TrainedPart


@dataclass(frozen=True)
class Optimization:
    """AdamW's settings and the schedule of the learning rate.

    lr: of the generator, or of everything where there is no retriever to train.
    question_encoder_lr: of the question encoder; `lr` if None.
    passage_encoder_lr: of a passage encoder that is trained; the question encoder's if None.
    schedule: a name of transformers.get_scheduler ("linear", "polynomial", "cosine", "constant_with_warmup").
    """

    lr: float = 3e-5
    question_encoder_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.001
    warmup_steps: int = 500
    schedule: str = "polynomial"
    passage_encoder_lr: float | None = None

    def __post_init__(self) -> None:
        known = [str(each.value) for each in SchedulerType]
        if self.schedule not in known:
            raise UserError(f"the schedule {self.schedule!r} does not exist; available: {', '.join(known)}")

    def configure(
        self, parts: Sequence[TrainedPart], max_steps: int, precision: str = "32-true"
    ) -> dict[str, Any]:
        """Lightning's optimiser dictionary for a model's parts over `max_steps` steps.

        Biases and the gains of layer norms are not decayed. precision: the trainer's.
        """
        groups, known = [], set()
        retriever_lr = self.lr if self.question_encoder_lr is None else self.question_encoder_lr
        passages_lr = retriever_lr if self.passage_encoder_lr is None else self.passage_encoder_lr
        rates = {"generator": self.lr, "retriever": retriever_lr, "passages": passages_lr}
        for part in parts:
            lr = rates[part.rate]
            for module, multiple in [*part.faster, (part.module, 1.0)]:
                # A weight that two parts share, as two encoders their embeddings, belongs to the first.
                trained = [p for p in module.parameters() if p.requires_grad and p not in known]
                known.update(trained)
                group_settings = {"lr": lr * multiple}
                groups.append(
                    {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.weight_decay}
                    | group_settings
                )
                groups.append(
                    {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0} | group_settings
                )
        groups = [group for group in groups if group["params"]]
        # Lightning clips no gradients of a fused optimiser in mixed precision, which would unscale them by itself.
        fused = not precision.endswith("mixed")
        betas = (self.betas[0], self.betas[1])
        optimizer = torch.optim.AdamW(groups, betas=betas, eps=self.eps, fused=fused)
        scheduler = get_scheduler(self.schedule, optimizer, self.warmup_steps, max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
