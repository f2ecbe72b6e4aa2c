"""MiniLM's weights under their earlier address: rag/minilm.py has them, for encoders and generators alike."""

from rag.minilm import check_sha256 as check_sha256
from rag.minilm import minilm as minilm
