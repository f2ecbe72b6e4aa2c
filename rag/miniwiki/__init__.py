"""The built-in world: a small encyclopedia written from a seed, so that everything runs offline.

`python -m rag.miniwiki output=data/miniwiki seed=1` writes passages and questions as plain files.
Nothing else in the project knows about this world: it is read through the same readers as any other
passages and questions.
"""

from rag.miniwiki.world import write_world

__all__ = ["write_world"]
