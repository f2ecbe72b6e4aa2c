"""Section 2.2: the two encoders, texts in, vectors out."""

from typing import TYPE_CHECKING

from rag.lazy import face

if TYPE_CHECKING:
    from rag.encoders.dpr import Encoder as Encoder
    from rag.encoders.dpr import PassageEncoder as PassageEncoder
    from rag.encoders.dpr import QuestionEncoder as QuestionEncoder
    from rag.encoders.opening import open_embedder as open_embedder
    from rag.encoders.opening import open_passage_encoder as open_passage_encoder
    from rag.encoders.opening import open_question_encoder as open_question_encoder
    from rag.encoders.protocol import AnyPassageEncoder as AnyPassageEncoder
    from rag.encoders.protocol import AnyQuestionEncoder as AnyQuestionEncoder
    from rag.encoders.protocol import describe_encoder as describe_encoder
    from rag.encoders.sentence_transformer import SentencePassageEncoder as SentencePassageEncoder
    from rag.encoders.sentence_transformer import SentenceQuestionEncoder as SentenceQuestionEncoder
    from rag.encoders.settings import EncoderSettings as EncoderSettings

__getattr__, __dir__ = face(
    __name__,
    {
        "AnyPassageEncoder": "protocol",
        "AnyQuestionEncoder": "protocol",
        "Encoder": "dpr",
        "EncoderSettings": "settings",
        "PassageEncoder": "dpr",
        "QuestionEncoder": "dpr",
        "SentencePassageEncoder": "sentence_transformer",
        "SentenceQuestionEncoder": "sentence_transformer",
        "describe_encoder": "protocol",
        "open_embedder": "opening",
        "open_passage_encoder": "opening",
        "open_question_encoder": "opening",
    },
)
