"""Section 2.2: the two encoders, texts in, vectors out."""

from typing import TYPE_CHECKING

from rag.lazy import face

if TYPE_CHECKING:
    from rag.encoders.dpr import Encoder as Encoder
    from rag.encoders.dpr import PassageEncoder as PassageEncoder
    from rag.encoders.dpr import QuestionEncoder as QuestionEncoder

__getattr__, __dir__ = face(
    __name__,
    {
        "Encoder": "dpr",
        "QuestionEncoder": "dpr",
        "PassageEncoder": "dpr",
    },
)
