"""Section 2.4: training. Minimise −log p(y|x) of the retriever's question encoder and the generator together.

There is no supervision of what to retrieve: the question encoder learns through log p_η(z|x) in the marginal. The
passage encoder and the index stay as they are, as in the paper; with retriever=dense_trained it learns in the same way,
and the index is embedded again (refresh.py).
"""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from rag import objectives
from rag.classify import Classifier
from rag.decoding.generation import generate
from rag.decoding.search import check_positions
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.metrics.retrieval import recall_at
from rag.model import Batch, Likelihood, RagModel
from rag.parts import check_parts, recompute_layers, save_model
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering
from rag.training.datamodule import torch_seed
from rag.training.optimization import Optimization
from rag.training.whole_batch import WholeBatchModule

# A retriever that gives every question of a batch the same passages, this many steps in a row, has collapsed.
COLLAPSED_STEPS = 10
SHOWN = 20  # dev questions whose answers and passages are kept for a logger's table


class RagModule(WholeBatchModule):
    """Trains RAG-Sequence, RAG-Token or a closed-book generator; judges it on dev by its task's measures.

    label_smoothing: ε; (1 − ε)·NLL + ε·(the generator's smoothing term), nothing of which reaches the retriever.
    per_token: weigh examples by their number of tokens (denoising), instead of equally (answers).

    A question none of whose K passages exists has a loss of infinity and teaches nothing: such are left out of every
    mean, and counted as train/left_out and dev/left_out.

    gradient_checkpointing: recompute each layer of BERT and of the generator in the backward pass.

    retriever_loss: one of rag/objectives.py's or your own, which teaches the retriever in place of the marginal: the
    loss is then −log p(y|x) with p_η(z|x) as a constant, plus `retriever_weight` times it. generator_loss: False leaves
    the former out and freezes the generator.
    """

    dev_metrics = (
        *("dev/nll_per_example", "dev/nll_per_token"),
        *("dev/retrieval_entropy", "dev/distinct_passages", "dev/recall@1", "dev/recall@K"),
    )
    loss_metric = "train/nll_per_example"  # falls to nothing when a batch is learned by heart
    to_lower = "optimization.lr, optimization.question_encoder_lr or trainer.gradient_clip_val"

    def __init__(
        self,
        model: RagModel,
        optimization: Optimization,
        decoding: Decoding | None = None,
        label_smoothing: float = 0.0,
        per_token: bool = False,
        seed: int = 0,
        gradient_checkpointing: bool = False,
        retriever_loss: Callable[..., Tensor] | None = None,
        retriever_weight: float = 1.0,
        generator_loss: bool = True,
    ):
        super().__init__()
        self.model = model
        self.retriever_loss, self.retriever_weight = retriever_loss, retriever_weight
        self.generator_loss = generator_loss
        self.taken = () if retriever_loss is None else objectives.takes(retriever_loss)
        self._check_retriever_loss()
        judges = [] if generator_loss else model.trained_parts()
        self.frozen = [part.module for part in judges if part.rate == "generator"]
        for each in self.frozen:
            each.requires_grad_(False)
        check_parts(model, model.trained_parts())
        self.optimization = optimization
        self.decoding = decoding or Decoding()
        if not isinstance(model, Classifier):  # which generates nothing
            check_positions(model.generator, self.decoding)
        self.label_smoothing = label_smoothing
        self.per_token = per_token
        self.seed = seed
        self.collapsed = 0
        # Of dev, one value for each example that can be judged: NaN is a model's, and stays.
        self.scores: dict[str, list[np.ndarray]] = {}
        self.shown: list[dict[str, str]] = []
        if gradient_checkpointing:
            recompute_layers(model.trained_parts())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch_seed(self.seed, self.global_step, self.global_rank)

    def training_step(self, batch: tuple[list[Example], Batch], batch_idx: int) -> Tensor:
        examples, inputs = batch
        likelihood: Likelihood = self.model(
            inputs, want_smoothing=self.label_smoothing > 0, want_attention="attention" in self.taken
        )
        assert inputs.label_mask is not None
        counted = has_passages(likelihood)
        # Before anything is mixed: a difference of infinities is NaN.
        nll = torch.where(counted, -likelihood.logprob, 0.0)
        loss, more = nll, {}
        if self.retriever_loss is not None:
            loss, of_retriever = self._apart(likelihood, inputs, counted)
            more = {"retriever_loss": of_retriever.sum()}
        if likelihood.smoothing is not None:
            loss = torch.lerp(loss, torch.where(counted, likelihood.smoothing, 0.0), self.label_smoothing)
        if self.retriever_loss is not None:
            loss = loss * self.generator_loss + self.retriever_weight * of_retriever
        count, tokens = counted.sum(), (inputs.label_mask & counted.unsqueeze(1)).sum()
        if likelihood.retrieved is not None:
            self._log_retrieval(likelihood, examples)
        sums = {"nll": nll.sum(), "examples": count, "tokens": tokens, "left_out": (~counted).sum()} | more
        return self.add_up(loss.sum(), tokens if self.per_token else count, **sums)

    def _apart(
        self, likelihood: Likelihood, inputs: Batch, counted: Bool[Tensor, " batch"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The generator's loss, with p_η(z|x) as a constant, and the retriever's."""
        assert self.retriever_loss is not None and inputs.labels is not None and inputs.label_mask is not None
        mask = inputs.label_mask & (inputs.labels >= 0)
        of_generator = -self.model.marginal(likelihood.doc_logprobs.detach(), likelihood.token_logprobs, mask)
        given = {
            "doc_logprobs": likelihood.doc_logprobs,
            "token_logprobs": likelihood.token_logprobs,
            "token_mask": mask,
            "attention": likelihood.attention,
        }
        of_retriever = self.retriever_loss(**{name: given[name] for name in self.taken})
        return torch.where(counted, of_generator, 0.0), torch.where(counted, of_retriever, 0.0)

    def _check_retriever_loss(self) -> None:
        if self.retriever_loss is None:
            if not self.generator_loss:
                raise UserError(
                    "generator_loss=false leaves no loss to train with: give retriever_loss=emdr2, pdist, …"
                )
            return
        if not 0 < self.retriever_weight < math.inf:
            raise UserError(f"retriever_weight={self.retriever_weight}: give a number above 0")
        parts = [part.module for part in self.model.trained_parts() if part.rate != "generator"]
        if not any(weight.requires_grad for part in parts for weight in part.parameters()):
            raise UserError(
                "a retriever_loss is given, but nothing of the retriever is trained: leave it out, or train the "
                "question encoder (retriever=dense retriever.trainable=true)"
            )
        if "attention" in self.taken:
            self.model.check_attention()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for each in self.frozen if mode else []:
            each.eval()  # no dropout in what only judges
        return self

    def check_data(self, datamodule: Any, ranks: int) -> None:
        """Nothing beyond what the data module's own setup refuses."""

    def log_step(self, sums: dict[str, float]) -> None:
        if sums["examples"]:
            self.log("train/nll_per_example", sums["nll"] / sums["examples"], prog_bar=True)
            self.log("train/nll_per_token", sums["nll"] / sums["tokens"])
            if "retriever_loss" in sums:
                self.log("train/retriever_loss", sums["retriever_loss"] / sums["examples"])
        if self.model.retriever is not None:
            self.log("train/left_out", sums["left_out"])

    def _log_retrieval(self, likelihood: Likelihood, examples: list[Example]) -> None:
        """What tells a retriever that learns from one that collapses onto the same few passages."""
        assert likelihood.retrieved is not None
        rows = likelihood.retrieved.rows
        prior = likelihood.doc_logprobs.detach().exp()
        entropy = torch.special.entr(prior).sum(dim=1).mean()
        distinct = len(np.unique(rows)) / rows.size
        self.log_dict({"train/retrieval_entropy": entropy, "train/distinct_passages": distinct})
        same = (
            (rows == rows[0]).all()
            and (rows[0] >= 0).any()
            and len({example.question for example in examples}) > 1
        )
        self.collapsed = self.collapsed + 1 if same else 0
        if self.collapsed == COLLAPSED_STEPS:
            warnings.warn(
                f"step {self.global_step}: for {COLLAPSED_STEPS} steps all questions of a batch retrieved the same "
                f"{rows.shape[1]} passages (entropy of p(z|x) {float(entropy):.2f} of {math.log(rows.shape[1]):.2f} "
                "nats), the retriever has collapsed: lower optimization.question_encoder_lr",
                stacklevel=2,
            )

    def on_validation_epoch_start(self) -> None:
        self.scores, self.shown, self.predicted = {}, [], []

    def validation_step(self, batch: tuple[list[Example], Batch], batch_idx: int) -> None:
        examples, inputs = batch
        likelihood: Likelihood = self.model(inputs)
        assert inputs.label_mask is not None
        nll = -likelihood.logprob.double().cpu().numpy()
        judged = has_passages(likelihood).cpu().numpy()
        if not np.isfinite(
            nll[judged]
        ).all():  # no answer is worth looking for: training ends with this epoch
            self._score("dev/nll_per_example", nll[judged])
            return
        contexts = (
            self.model.read(inputs)
            if likelihood.retrieved is None
            else self.model.read_retrieved(inputs, likelihood.retrieved)
        )
        answers = generate(self.model, contexts, self.decoding)
        texts = [ranked[0].text for ranked in answers]
        self.predicted += zip(examples, texts, strict=True)
        self._score("dev/nll_per_example", nll[judged])
        # each example's mean counts as often as it has tokens: see on_validation_epoch_end
        self._score("dev/tokens", inputs.label_mask.sum(dim=1).double().cpu().numpy()[judged])
        rows = None
        if likelihood.retrieved is not None:
            rows = likelihood.retrieved.rows
            entropy = torch.special.entr(likelihood.doc_logprobs.double().exp()).sum(dim=1)
            self._score("dev/retrieval_entropy", entropy.cpu().numpy()[judged])
            self._score("dev/left_out", (~judged).astype(np.float64))
            self._score("dev/distinct_passages", np.full(len(rows), len(np.unique(rows)) / rows.size))
            store = self.model.retriever.index.passages
            ids = np.array(store.ids(rows.reshape(-1)), dtype=object).reshape(rows.shape)
            gold = [example.positive_ids for example in examples]
            for k, recalls in recall_at(ids, gold, sorted({1, rows.shape[1]})).items():
                # NaN where no gold passage is known
                self._score(f"dev/recall@{k}", recalls[~np.isnan(recalls)])
        for number in range(min(len(examples), SHOWN - len(self.shown))):
            row = {
                "question": examples[number].question,
                "answers": " | ".join(examples[number].answers),
                "prediction": texts[number],
                "log p(y|x)": f"{answers[number][0].logprob:.3f}",
            }
            if rows is not None:
                store = self.model.retriever.index.passages
                passages = [store[int(each)] for each in rows[number] if each >= 0]
                row["passages"] = "\n\n".join(f"{passage.title} / {passage.text}" for passage in passages)
            self.shown.append(row)

    def _score(self, name: str, values: np.ndarray) -> None:
        self.scores.setdefault(name, []).append(values)

    def on_validation_epoch_end(self) -> None:
        """Means over the examples of all ranks: each counts once, however unevenly they are shared out."""
        totals = {}
        for name, parts in self.scores.items():
            values = np.concatenate(parts)
            totals[name] = (float(values.sum()), len(values))
        every: list[Any] = [(totals, self.predicted)]
        if dist.is_initialized():
            every = [None] * dist.get_world_size()
            dist.all_gather_object(every, (totals, self.predicted))
        loss = sum(one.get("dev/nll_per_example", (0.0, 0))[0] for one, _ in every)
        if not math.isfinite(loss):
            self.stop_not_finite(self.global_step, f"the loss on dev is {loss}")
        sums: dict[str, np.ndarray] = {}
        predicted = [each for _, of_one in every for each in of_one]
        task = self.trainer.datamodule.task or QuestionAnswering()  # type: ignore[attr-defined]
        measures = task.score([text for _, text in predicted], [example for example, _ in predicted])
        for name, metric in measures.items():
            # NaN where dev has nothing to judge by; no checkpoint is the best by that
            sums[f"dev/{name}"] = np.array([metric.value, 1])
        for one, _ in every:
            for name, pair in one.items():
                sums[name] = sums.get(name, np.zeros(2)) + np.array(pair)
        if tokens := sums.pop("dev/tokens", np.zeros(2))[0]:
            sums["dev/nll_per_token"] = np.array([sums["dev/nll_per_example"][0], tokens])
        if (left_out := sums.pop("dev/left_out", None)) is not None:
            self.log("dev/left_out", left_out[0])
        for name, (total, count) in sums.items():
            self.log(name, total / count if count else math.nan, prog_bar=name == "dev/em")

    def configure_optimizers(self) -> Any:
        return self.optimization.configure(
            self.model.trained_parts(), self.trainer.max_steps, str(self.trainer.precision)
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        examples, inputs = batch
        return examples, inputs.to(device)

    def save(self, folder: Path, run: Path) -> None:
        """Write the model's parts and how it is reopened into `folder`, which becomes `run`/model."""
        index = None if self.model.retriever is None else self.model.retriever.index.folder
        save_model(self.model, folder, run, index=index, n_docs=self.model.n_docs)


def has_passages(likelihood: Likelihood) -> Bool[Tensor, " batch"]:
    """Which questions have a passage to read: the others' log p(y|x) is −inf, whatever the model."""
    return (likelihood.doc_logprobs != -torch.inf).any(dim=1)
