"""Section 4: a whole set of questions answered, and the answers judged."""

from typing import TYPE_CHECKING

from rag.lazy import face

if TYPE_CHECKING:
    from rag.evaluation.answering import answer_in_parts as answer_in_parts
    from rag.evaluation.answering import answer_questions as answer_questions
    from rag.evaluation.hot_swap import hot_swap as hot_swap
    from rag.evaluation.judging import judge as judge

__getattr__, __dir__ = face(
    __name__,
    {
        "answer_questions": "answering",
        "answer_in_parts": "answering",
        "judge": "judging",
        "hot_swap": "hot_swap",
    },
)
