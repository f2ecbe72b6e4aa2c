"""Section 2.4: training end to end, and the bi-encoder before that."""

from typing import TYPE_CHECKING

from rag.lazy import face

if TYPE_CHECKING:
    from rag.training.datamodule import RagDataModule as RagDataModule
    from rag.training.dpr import BiEncoder as BiEncoder
    from rag.training.dpr import DprModule as DprModule
    from rag.training.dpr import bert_encoders as bert_encoders
    from rag.training.dpr import sentence_encoders as sentence_encoders
    from rag.training.dpr_data import DprData as DprData
    from rag.training.hard_negatives import DistantPositives as DistantPositives
    from rag.training.hard_negatives import MinedNegatives as MinedNegatives
    from rag.training.loggers import tensorboard_logger as tensorboard_logger
    from rag.training.loggers import wandb_logger as wandb_logger
    from rag.training.module import RagModule as RagModule
    from rag.training.optimization import Optimization as Optimization
    from rag.training.reading import Reading as Reading
    from rag.training.reading import ReadingData as ReadingData
    from rag.training.remining import Remining as Remining

__getattr__, __dir__ = face(
    __name__,
    {
        "RagModule": "module",
        "RagDataModule": "datamodule",
        "Optimization": "optimization",
        "BiEncoder": "dpr",
        "DprModule": "dpr",
        "bert_encoders": "dpr",
        "sentence_encoders": "dpr",
        "DprData": "dpr_data",
        "DistantPositives": "hard_negatives",
        "MinedNegatives": "hard_negatives",
        "Reading": "reading",
        "ReadingData": "reading",
        "Remining": "remining",
        "wandb_logger": "loggers",
        "tensorboard_logger": "loggers",
    },
)
