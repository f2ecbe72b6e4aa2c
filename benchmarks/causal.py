"""A causal language model as generator, ours beside the straightforward way: python -m benchmarks.causal [--json FILE]

    token_beam4      RAG-Token's answers, four beams, from prompts' tokens
    thorough_beam4   RAG-Sequence's answers by Thorough decoding, four beams, from prompts' tokens
    sequence_train   forward and backward of RAG-Sequence's loss, without retrieval

Theirs, on the same weights and prompts, uses transformers alone. Answers are searched for by its own `generate`, with
its cache, from one copy of a prompt for each beam, which is read for each; a hypothesis is scored under a passage by
one pass over prompt and hypothesis, sixteen at a time, with scores over the vocabulary for the hypothesis alone.
`again`: the search has no cache, so that each beam's prompt is run again at each step. In training, prompts and
answers are read in one pass, and the loss is taken from the scores over the vocabulary that the model returns, which
are those of every token.

Answers and losses have to be equal, or the row says so. Time and memory are measured as in benchmarks/compare.py.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from rich.console import Console
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from benchmarks import compare, world
from benchmarks.machine import describe, pin_to_one_core
from benchmarks.sides import as_published
from rag import marginalize
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.files import write_json
from rag.generators.causal import CausalGenerator
from rag.generators.context import Ragged, token_rows
from rag.model import Contexts, RagSequence, RagToken
from rag.retrievers.protocol import Retrieved

BEAMS, GENERATED, AT_ONCE = 4, 16, 16
WHAT = ("token_beam4", "token_beam4_again", "thorough_beam4", "thorough_beam4_again", "sequence_train")
# hidden, layers, heads, heads of keys, vocabulary
SIZES = {"tiny": (32, 2, 4, 2, 2_000), "small": (256, 4, 8, 4, 8_192), "minilm": (384, 6, 12, 4, 30_522)}


class Side:
    """One model, the prompts of B questions × K passages of 100 words, p(z|x), answers: all random, from one seed."""

    def __init__(self, size: str, docs: int, questions: int):
        self.docs, self.batch = docs, questions
        text = world.Text()
        passages = [f"{title}\n{body}" for title, body in text.passages(docs * questions)]
        asked, self.answers = text.questions(questions), text.answers(questions, 12)
        tokenizer = world.generator_tokenizer([*passages, *asked, *self.answers, "\n\nQuestion: \nAnswer:"])
        hidden, layers, heads, of_keys, vocabulary = SIZES[size]
        torch.manual_seed(world.SEED)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=of_keys,
                intermediate_size=4 * hidden,
                max_position_embeddings=512,
                initializer_range=1.28 / hidden**0.5,
                tie_word_embeddings=False,
                bos_token_id=0,
                pad_token_id=1,
                eos_token_id=2,
            )
        ).eval()
        with torch.no_grad():  # no special token is generated: answers are as long as they may be
            model.lm_head.weight[:5] = 0.0
        self.generator = CausalGenerator(
            model, tokenizer, max_context_length=world.MAX_CONTEXT, max_target_length=world.MAX_TARGET
        )
        rows = Ragged.of(token_rows(tokenizer, passages))
        self.ids, self.mask = self.generator.assemble(
            self.generator.tokenize_questions(asked).repeat(docs), rows
        )
        self.prior = torch.randn(questions, docs).log_softmax(dim=1)
        self.labels, self.label_mask = self.generator.tokenize_targets(self.answers)

    @property
    def prompts(self) -> list[torch.Tensor]:
        """The tokens of each prompt, its last included."""
        end = torch.tensor([self.generator.start_token])
        return [torch.cat([row[own], end]) for row, own in zip(self.ids, self.mask, strict=True)]

    def contexts(self) -> Contexts:
        found = Retrieved(np.arange(self.prior.numel()).reshape(self.prior.shape), self.prior)
        return Contexts(self.generator.encode(self.ids, self.mask), self.mask, self.prior, found)

    @cached_property
    def their_model(self) -> Any:
        return as_published(self.generator.model)


def left_padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=1) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
    return ids, mask


class TheirToken(PreTrainedModel, GenerationMixin):
    """RAG-Token as one model of the next token. Its rows are question, beam, passage; each has a prompt of its own."""

    _supports_sdpa = True

    def __init__(self, side: Side, with_cache: bool):
        config = side.generator.model.config
        super().__init__(LlamaConfig.from_dict({**config.to_dict(), "is_encoder_decoder": True}))
        self.generation_config = GenerationConfig()
        self.side, self.with_cache, self.model = side, with_cache, side.their_model
        self.ids, self.mask = left_padded(side.prompts)
        self.cache: Any = None
        self.seen = self.mask

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, decoder_input_ids: torch.Tensor, encoder_outputs: Any = None, **_: Any) -> Any:
        docs, rows = self.side.docs, len(decoder_input_ids)
        copies = rows // self.side.batch
        own = torch.arange(self.side.batch).repeat_interleave(copies).unsqueeze(1) * docs + torch.arange(docs)
        own = own.flatten()
        # Behind the start token, which the prompt holds; with a cache `generate` gives the last token alone.
        known = self.with_cache and self.cache is not None
        new = decoder_input_ids[:, -1:] if known else decoder_input_ids[:, 1:]
        new = new.repeat_interleave(docs, dim=0)
        seen = torch.cat([self.seen if known else self.mask[own], torch.ones_like(new)], dim=1)
        given = new if known else torch.cat([self.ids[own], new], dim=1)
        if self.with_cache and not known:
            self.cache = DynamicCache()
        self.seen = seen
        logits = self.model(
            input_ids=given,
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0)[:, -given.shape[1] :],
            past_key_values=self.cache,
            use_cache=self.with_cache,
            logits_to_keep=1,
        ).logits[:, -1]
        of_passages = logits.log_softmax(dim=-1).view(rows, docs, -1)
        prior = self.side.prior.repeat_interleave(copies, dim=0)
        return CausalLMOutputWithPast(
            logits=(prior.unsqueeze(2) + of_passages).logsumexp(dim=1).unsqueeze(1),  # type: ignore[arg-type]
        )

    def reorder(self, beams: torch.Tensor) -> None:
        docs = self.side.docs
        self.cache.reorder_cache((beams.unsqueeze(1) * docs + torch.arange(docs)).flatten())


class _Beams(DynamicCache):
    """What `generate` takes for the cache: reordering it reorders the passages' as well."""

    def __init__(self, model: TheirToken):
        super().__init__()
        self.of = model

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:  # type: ignore[override]
        self.of.reorder(beam_idx)


class Token:
    def __init__(self, side: Side, with_cache: bool):
        self.side, self.with_cache = side, with_cache

    def ours(self) -> Callable[[], Any]:
        return _answers(self.side, RagToken)

    def theirs(self) -> Callable[[], Any]:
        side = self.side
        config = GenerationConfig(
            num_beams=BEAMS,
            max_new_tokens=GENERATED,
            decoder_start_token_id=side.generator.start_token,
            eos_token_id=2,
            pad_token_id=1,
        )

        @torch.no_grad()
        def answer() -> Any:
            model: Any = TheirToken(side, self.with_cache)
            numbers = BaseModelOutput(
                last_hidden_state=torch.arange(side.batch).view(-1, 1, 1)  # type: ignore[arg-type]
            )
            found = model.generate(
                generation_config=config,
                encoder_outputs=numbers,
                attention_mask=torch.ones(side.batch, 1),
                **({"past_key_values": _Beams(model)} if self.with_cache else {"use_cache": False}),
            )
            return [[token for token in row if token != 1] for row in found[:, 1:].tolist()]

        return answer

    result = staticmethod(lambda answers: answers)
    equal = staticmethod(lambda ours, theirs: ours == theirs)


def _answers(side: Side, kind: Any) -> Callable[[], Any]:
    model: Any = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.generator = side.generator
    decoding = Decoding(max_new_tokens=GENERATED, num_beams=BEAMS)

    @torch.no_grad()
    def answer() -> Any:
        return [list(found[0].tokens) for found in generate(model, side.contexts(), decoding)]

    return answer


class Thorough:
    def __init__(self, side: Side, with_cache: bool):
        self.side, self.with_cache = side, with_cache

    def ours(self) -> Callable[[], Any]:
        return _answers(self.side, RagSequence)

    def theirs(self) -> Callable[[], Any]:
        side, model = self.side, self.side.their_model
        config = GenerationConfig(
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            max_new_tokens=GENERATED,
            eos_token_id=2,
            pad_token_id=1,
            use_cache=self.with_cache,
        )

        @torch.no_grad()
        def answer() -> Any:
            prompts = side.prompts
            ids, mask = left_padded(prompts)
            found = model.generate(ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
            best = []
            for question in range(side.batch):
                own = range(question * side.docs, (question + 1) * side.docs)
                rows = found[own.start * BEAMS : own.stop * BEAMS].tolist()
                hypotheses = sorted({tuple(token for token in row if token != 1) for row in rows})
                scores = self._scores([prompts[each] for each in own], hypotheses)
                logprobs = (side.prior[question].unsqueeze(1) + scores).logsumexp(dim=0)
                best.append(list(hypotheses[int(logprobs.argmax())]))
            return best

        return answer

    def _scores(self, prompts: Sequence[torch.Tensor], hypotheses: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """log p(y|x,z), (passages, hypotheses): prompt and hypothesis in one pass, for each pair."""
        model = self.side.their_model
        pairs = [(prompt, torch.tensor(each)) for prompt in prompts for each in hypotheses]
        scores = []
        for start in range(0, len(pairs), AT_ONCE):
            some = pairs[start : start + AT_ONCE]
            ids, mask = left_padded([torch.cat(pair) for pair in some])
            longest = max(len(answer) for _, answer in some)
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=longest + 1,
            ).logits[:, :-1]
            own = logits.log_softmax(dim=-1).gather(-1, ids[:, -longest:].unsqueeze(-1)).squeeze(-1)
            scores += [own[row, longest - len(answer) :].sum() for row, (_, answer) in enumerate(some)]
        return torch.stack(scores).view(len(prompts), len(hypotheses))

    result = staticmethod(lambda answers: answers)
    equal = staticmethod(lambda ours, theirs: ours == theirs)


class Train:
    def __init__(self, side: Side):
        self.side = side

    def ours(self) -> Callable[[], Any]:
        side, generator = self.side, self.side.generator

        def step() -> torch.Tensor:
            generator.zero_grad()
            labels = side.labels.repeat_interleave(side.docs, dim=0)
            scores, _ = generator.token_logprobs(generator.encode(side.ids, side.mask), side.mask, labels)
            tokens = scores.unflatten(0, (-1, side.docs))
            losses = -marginalize.sequence_logprob(side.prior, tokens, side.label_mask)
            losses.sum().backward()
            return losses.detach()

        return step

    def theirs(self) -> Callable[[], Any]:
        side, model = self.side, self.side.their_model
        answers = [row[own] for row, own in zip(side.labels, side.label_mask, strict=True)]
        rows = [torch.cat([prompt, answers[n // side.docs]]) for n, prompt in enumerate(side.prompts)]
        ids, mask = left_padded(rows)

        def step() -> torch.Tensor:
            model.zero_grad()
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            scores = logits[:, :-1].log_softmax(dim=-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
            sums = torch.stack([row[-len(answers[n // side.docs]) :].sum() for n, row in enumerate(scores)])
            losses = -(side.prior + sums.view(-1, side.docs)).logsumexp(dim=1)
            losses.sum().backward()
            return losses.detach()

        return step

    def result(self, losses: torch.Tensor) -> Any:
        return losses, [
            weight.grad.clone() for weight in self.side.generator.parameters() if weight.grad is not None
        ]

    def equal(self, ours: Any, theirs: Any) -> bool:
        if not torch.allclose(ours[0], theirs[0], rtol=1e-4):
            return False
        difference = sum(
            float((mine - other).square().sum()) for mine, other in zip(ours[1], theirs[1], strict=True)
        )
        return difference**0.5 <= 1e-3 * sum(float(other.square().sum()) for other in theirs[1]) ** 0.5


def task(what: str, side: Side) -> Any:
    if what.startswith("token"):
        return Token(side, with_cache=not what.endswith("again"))
    if what.startswith("thorough"):
        return Thorough(side, with_cache=not what.endswith("again"))
    return Train(side)


def measure_memory(size: str, what: str, docs: int, questions: int) -> tuple[int, int]:
    """Peak bytes of ours and theirs, each in a process of its own."""
    peaks = []
    for side in ("ours", "theirs"):
        command = [sys.executable, "-m", "benchmarks.causal", "--size", size, "--only", what]
        command += ["--shape", f"{docs}x{questions}", "--peak-of", side]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        peaks.append(int(done.stdout.splitlines()[-1]))
    return peaks[0], peaks[1]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.causal", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--size", default="small,minilm", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--only", default=",".join(WHAT), help="what to compare, separated by commas")
    parser.add_argument("--shape", default="5x4", help="KxB")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each side; 0: memory alone")
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--peak-of", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.size, given.only = given.size.split(","), given.only.split(",")
    for names, known in ((given.size, SIZES), (given.only, WHAT)):
        if unknown := [each for each in names if each not in known]:
            parser.error(f"{unknown[0]} is unknown: choose from {', '.join(known)}")
    return given


def main() -> None:
    given = _arguments()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    pin_to_one_core()
    docs, questions = map(int, given.shape.split("x"))
    if given.peak_of:
        call = getattr(task(given.only[0], Side(given.size[0], docs, questions)), given.peak_of)()
        print(compare.peak_memory(call))
        return
    console = Console(width=120)
    console.print(
        f"{describe()}\ntransformers {transformers.__version__}, torch {torch.__version__}, float32"
    )
    rows = []
    for size in given.size:
        side = Side(size, docs, questions)
        for what in given.only:
            seconds, equal = (
                compare.measure_time(task(what, side), given.repeats) if given.repeats else (None, None)
            )
            want_memory = not given.no_memory and not what.endswith("again")
            peaks = measure_memory(size, what, docs, questions) if want_memory else None
            row = compare.Row(
                size,
                what,
                docs,
                questions,
                seconds and seconds[1] / seconds[0],
                peaks and peaks[1] / peaks[0],
                equal,
                seconds,
                peaks,
            )
            rows.append(row)
            print(json.dumps(asdict(row)), file=sys.stderr)
    console.print(compare.table(rows))
    if given.json:
        write_json(given.json, [asdict(row) for row in rows])
        console.print(f"written to {given.json}")


if __name__ == "__main__":
    main()
