"""Section 2.4: an optimiser step takes the mean over its whole batch, however the batch is cut up.

    gradient = Σ ∇(sum of losses) / Σ weight       over all accumulated micro-batches of all ranks

The weight is the number of questions, or of tokens, that have a loss. Micro-batches and ranks of unequal size, and
examples that are left out, therefore give the gradient of one batch that holds everything: the mean of each
micro-batch's own mean would not.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer

from rag.errors import UserError
from rag.finite import not_finite

LOWEST_SCALE = 2.0**-10  # of float16's loss: below it, what overflows is no matter of scale


class WholeBatchModule(pl.LightningModule):
    """A module whose `training_step` returns what `add_up` makes of the losses of one micro-batch.

    Lightning's automatic optimisation stays: gradients are summed by it, and divided by the total weight once, before
    they are clipped. Training stops, with a UserError on every rank, at the first loss or gradient norm that is not
    finite, before the optimiser moves anything; checkpoints of weights that are not finite are not written.

    shown: rows of a table of dev's predictions, as of the last look at it; none where nothing is predicted.
    """

    shown: Sequence[dict[str, str]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, Tensor] = {}
        self._last_loss: tuple[int, float] | None = None  # step and loss, the last finite one

    def add_up(self, loss: Tensor, weight: Tensor, **sums: Tensor) -> Tensor:
        """Note the sum of a micro-batch's losses, their weight, and `sums` for `log_step`; returns the loss."""
        for name, value in {"loss": loss, "weight": weight, **sums}.items():
            value = value.detach().to(loss.dtype)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        return loss

    def log_step(self, sums: dict[str, float]) -> None:
        """Log the metrics of a step from the sums over its whole batch."""
        raise NotImplementedError

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the weight of the whole batch; Lightning clips them afterwards."""
        trainer = self.trainer
        totals = torch.stack(list(self._sums.values()))
        if trainer.world_size > 1:
            dist.all_reduce(totals)
        names, self._sums = list(self._sums), {}
        gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        *values, norm = torch.cat([totals, norm.to(totals).reshape(1)]).tolist()  # waits for the device once
        sums = dict(zip(names, values, strict=True))
        # Lightning has divided by the number of micro-batches, and DDP by that of ranks.
        cuts = trainer.accumulate_grad_batches * trainer.world_size
        factor = cuts / sums["weight"] if sums["weight"] else 0.0
        torch._foreach_mul_(gradients, factor)
        loss, norm = sums["loss"] * factor / cuts, norm * factor
        self._check_step(loss, norm)
        if sums["weight"]:
            self._last_loss = trainer.global_step + 1, loss
        if math.isfinite(norm):
            self.log("train/gradient_norm", norm)
        self.log_step(sums)

    def _check_step(self, loss: float, norm: float) -> None:
        step = self.trainer.global_step + 1
        if not math.isfinite(loss):
            self.stop_not_finite(step, f"the loss is {loss}")
        plugin = self.trainer.precision_plugin
        scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
        # A gradient that overflows in float16 is skipped, and the next loss scaled less.
        if not math.isfinite(norm) and (scaler is None or scaler.get_scale() < LOWEST_SCALE):
            self.stop_not_finite(step, f"the norm of the gradient is {norm}")

    def stop_not_finite(self, step: int, problem: str) -> None:
        """Raise the UserError that ends training: what is not finite, since when, and what to lower."""
        last = (
            "no loss before it was finite"
            if self._last_loss is None
            else f"the last finite loss was {self._last_loss[1]:.4f} at step {self._last_loss[0]}"
        )
        precision = str(self.trainer.precision)
        wider = (
            ""
            if precision.startswith(("32", "64"))
            else f", or set trainer.precision=32-true instead of {precision}"
        )
        kept = [
            each.best_model_path
            for each in self.trainer.checkpoint_callbacks
            if isinstance(each, ModelCheckpoint) and each.best_model_path
        ]
        stays = f"; {' and '.join(kept)} from before stay as they are" if kept else ""
        raise UserError(
            f"training stopped at step {step} because {problem} ({last}): lower {self.to_lower}{wider}, and train "
            f"again with overwrite=true{stays}"
        )

    to_lower = "optimization.lr or trainer.gradient_clip_val"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_weights(checkpoint["state_dict"])

    def check_weights(self, weights: dict[str, Tensor]) -> None:
        """Stop rather than write weights that are not finite."""
        if (name := not_finite(weights)) is not None:
            self.stop_not_finite(self.trainer.global_step, f"{name} holds weights that are not finite")
