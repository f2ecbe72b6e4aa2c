"""Section 2.5: from contexts to answers, argmax_y p(y|x)."""

from typing import TYPE_CHECKING

from rag.lazy import face

if TYPE_CHECKING:
    from rag.decoding.answers import Answer as Answer
    from rag.decoding.generation import generate as generate
    from rag.decoding.generation import generate_for_each as generate_for_each
    from rag.decoding.settings import Decoding as Decoding

__getattr__, __dir__ = face(
    __name__,
    {
        "Decoding": "settings",
        "Answer": "answers",
        "generate": "generation",
        "generate_for_each": "generation",
    },
)
