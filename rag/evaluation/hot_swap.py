"""Section 4.5: exchange the index, and with it what the model knows, without training anything.

The same questions are asked over two editions of the corpus and judged by the answers of both. A model that reads its
memory is right where the edition asked about is the edition indexed, and wrong where it is not.
"""

from collections.abc import Mapping, Sequence

from rag.decoding.settings import Decoding
from rag.evaluation.answering import answer_questions
from rag.index.folder import Index
from rag.metrics.bootstrap import mean_with_interval
from rag.metrics.qa import exact_match
from rag.metrics.record import Record, swapped
from rag.model import RagModel
from rag.tasks.example import Example


def hot_swap(
    model: RagModel,
    indexes: Mapping[str, Index],
    examples: Mapping[str, Sequence[Example]],
    decoding: Decoding,
    n_docs: int,
    batch_size: int,
    split: str,
) -> list[Record]:
    """Exact match for each pair of editions, the one asked about and the one indexed (`swapped`).

    examples: the same questions with the answers of each edition; split: what the records call them. The model's own
    index is put back afterwards.
    """
    first = next(iter(examples.values()))
    before = model.retriever.index
    cells: dict[tuple[str, str], Record] = {}
    try:
        for indexed, index in indexes.items():
            model.retriever.swap(index)
            answers = answer_questions(
                model, first, decoding, [n_docs], batch_size, description=f"hot-swap, edition {indexed}"
            )
            for asked, of_edition in examples.items():
                right = exact_match(answers.texts(n_docs), [example.answers for example in of_edition])
                condition = swapped(asked, indexed)
                cells[asked, indexed] = Record.of("em", mean_with_interval(right), n_docs, split, condition)
    finally:
        model.retriever.swap(before)
    return [cells[pair] for pair in sorted(cells)]
