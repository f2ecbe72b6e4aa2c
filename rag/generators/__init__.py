"""Section 2.3: p_θ(y_i | x, z, y_<i), contexts in, log-probabilities of tokens out."""

from typing import TYPE_CHECKING

from rag.lazy import face

if TYPE_CHECKING:
    from rag.generators.attention import ScoresContexts as ScoresContexts
    from rag.generators.causal import CausalGenerator as CausalGenerator
    from rag.generators.context import Ragged as Ragged
    from rag.generators.lstm import LstmForConditionalGeneration as LstmForConditionalGeneration
    from rag.generators.output_layer import MakesOutputLayer as MakesOutputLayer
    from rag.generators.output_layer import OutputLayer as OutputLayer
    from rag.generators.output_layer import PlainOutputLayer as PlainOutputLayer
    from rag.generators.pretrained import pretrained_reader as pretrained_reader
    from rag.generators.reader import new_encoder_decoder as new_encoder_decoder
    from rag.generators.reader import new_reader as new_reader
    from rag.generators.seq2seq import Generator as Generator

__getattr__, __dir__ = face(
    __name__,
    {
        "CausalGenerator": "causal",
        "Generator": "seq2seq",
        "MakesOutputLayer": "output_layer",
        "OutputLayer": "output_layer",
        "PlainOutputLayer": "output_layer",
        "Ragged": "context",
        "ScoresContexts": "attention",
        "new_encoder_decoder": "reader",
        "new_reader": "reader",
        "pretrained_reader": "pretrained",
        "LstmForConditionalGeneration": "lstm",
    },
)
