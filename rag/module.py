"""Section 2.4: training. Minimise −log p(y|x) of the retriever's question encoder and the generator together.

There is no supervision of what to retrieve: the question encoder learns through log p_η(z|x) in the marginal. The
passage encoder and the index stay as they are.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from rag.classify import HeadClassifier
from rag.datamodule import torch_seed
from rag.decoding import Decoding, generate
from rag.metrics.qa import exact_match, token_f1
from rag.metrics.retrieval import recall_at
from rag.model import Batch, Likelihood, RagModel
from rag.optimization import Optimization
from rag.tasks.example import Example

# A retriever that gives every question of a batch the same passages, this many steps in a row, has collapsed.
COLLAPSED_STEPS = 10


class RagModule(pl.LightningModule):
    """Trains RAG-Sequence, RAG-Token or a closed-book generator; judges it on dev by exact match.

    label_smoothing: ε; (1 − ε)·NLL + ε·(the generator's smoothing term), nothing of which reaches the retriever.
    per_token: weigh examples by their number of tokens (denoising), instead of equally (answers).
    """

    def __init__(
        self,
        model: RagModel,
        optimization: Optimization,
        decoding: Decoding | None = None,
        label_smoothing: float = 0.0,
        per_token: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.model = model
        self.optimization = optimization
        self.decoding = decoding or Decoding()
        self.label_smoothing = label_smoothing
        self.per_token = per_token
        self.seed = seed
        self.collapsed = 0
        self.predictions: list[tuple[list[Example], list[str], np.ndarray | None]] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch_seed(self.seed, self.global_step, self.global_rank)

    def training_step(self, batch: tuple[list[Example], Batch], batch_idx: int) -> Tensor:
        examples, inputs = batch
        likelihood: Likelihood = self.model(inputs, want_smoothing=self.label_smoothing > 0)
        assert inputs.label_mask is not None
        tokens = inputs.label_mask.sum()
        nll = -likelihood.logprob
        loss = (
            nll
            if likelihood.smoothing is None
            else torch.lerp(nll, likelihood.smoothing, self.label_smoothing)
        )
        self.log("train/nll_per_example", nll.mean(), prog_bar=True)
        self.log("train/nll_per_token", nll.sum() / tokens)
        if likelihood.retrieved is not None:
            self._log_retrieval(likelihood, examples)
        return loss.sum() / tokens if self.per_token else loss.mean()

    def _log_retrieval(self, likelihood: Likelihood, examples: list[Example]) -> None:
        """What tells a retriever that learns from one that collapses onto the same few passages."""
        assert likelihood.retrieved is not None
        rows = likelihood.retrieved.rows
        prior = likelihood.doc_logprobs.detach().exp()
        entropy = torch.special.entr(prior).sum(dim=1).mean()
        distinct = len(np.unique(rows)) / rows.size
        self.log_dict({"train/retrieval_entropy": entropy, "train/distinct_passages": distinct})
        same = (rows == rows[0]).all() and len({example.question for example in examples}) > 1
        self.collapsed = self.collapsed + 1 if same else 0
        if self.collapsed == COLLAPSED_STEPS:
            warnings.warn(
                f"step {self.global_step}: for {COLLAPSED_STEPS} steps all questions of a batch retrieved the same "
                f"{rows.shape[1]} passages, the retriever has collapsed: lower optimization.question_encoder_lr",
                stacklevel=2,
            )

    def validation_step(self, batch: tuple[list[Example], Batch], batch_idx: int) -> None:
        examples, inputs = batch
        contexts = self.model.read(inputs)
        answers = generate(self.model, contexts, self.decoding)
        rows = None if contexts.retrieved is None else contexts.retrieved.rows
        self.predictions.append((examples, [found[0].text for found in answers], rows))

    def on_validation_epoch_end(self) -> None:
        examples = [example for batch, _, _ in self.predictions for example in batch]
        texts = [text for _, batch, _ in self.predictions for text in batch]
        answers = [example.answers for example in examples]
        scores = {"dev/em": exact_match(texts, answers), "dev/f1": token_f1(texts, answers)}
        gold = [example.positive_ids for example in examples]
        if self.predictions and self.predictions[0][2] is not None and any(gold):
            store = self.model.retriever.index.passages
            rows = np.concatenate([batch for _, _, batch in self.predictions if batch is not None])
            ids = np.array(store.ids(rows.reshape(-1)), dtype=object).reshape(rows.shape)
            for k, found in recall_at(ids, gold, sorted({1, rows.shape[1]})).items():
                scores[f"dev/recall@{k}"] = found
        self.predictions.clear()
        # sync_dist adds the ranks' sums and counts: each example counts once, however unevenly they are shared out.
        for name, values in scores.items():
            judged = values[~np.isnan(values)]
            if len(judged):
                self.log(
                    name,
                    float(judged.mean()),
                    prog_bar=name == "dev/em",
                    batch_size=len(judged),
                    sync_dist=True,
                )

    def configure_optimizers(self) -> Any:
        settings = self.optimization
        parts: list[tuple[Any, float]] = [(self.model.generator, settings.lr)]
        if (head := getattr(self.model, "head", None)) is not None:  # classification, rag/classify.py
            parts.append((head, settings.lr))
        retriever_lr = settings.lr if settings.question_encoder_lr is None else settings.question_encoder_lr
        for name in ("question_encoder", "null_document"):
            part = getattr(self.model.retriever, name, None)
            if part is not None:
                parts.append((part, retriever_lr))
        return settings.configure(parts, self.trainer.max_steps)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        examples, inputs = batch
        return examples, inputs.to(device)

    def save_pretrained(self, folder: Path) -> None:
        """Write generator/ and, where the model has them, question_encoder/, null_document and head .safetensors."""
        self.model.generator.save_pretrained(folder / "generator")
        encoder = getattr(self.model.retriever, "question_encoder", None)
        if encoder is not None:
            encoder.save_pretrained(folder / "question_encoder")
        null = getattr(self.model.retriever, "null_document", None)
        if null is not None:
            null.save_pretrained(folder / "null_document.safetensors")
        if isinstance(self.model, HeadClassifier):
            self.model.save_head(folder / "head.safetensors")
