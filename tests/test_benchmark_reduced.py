"""benchmarks/reduced.py with sizes that take seconds: every way embeds and answers, and what they say is near."""

import pytest

from benchmarks import reduced, world
from rag.index.passage import Passage


@pytest.mark.slow
def test_every_way_of_embedding():
    made = [Passage(str(row), *each) for row, each in enumerate(world.Text().passages(4))]
    rows = {row["way"]: row for row in reduced.embedding(made, repeats=1)}
    assert {"torch", "float32", "bfloat16", "int8"} <= rows.keys()
    assert all(row["least cosine"] > (0.98 if way == "int8" else 0.999) for way, row in rows.items())
    assert rows["torch"]["times torch's"] == 1


@pytest.mark.slow
def test_every_way_of_answering(monkeypatch):
    monkeypatch.setitem(world.SIZES, "base", world.SIZES["tiny"])
    rows = {row["way"]: row for row in reduced.answers(repeats=1)}
    assert rows.keys() == {"torch", "float32", "int8"}
    assert rows["float32"]["equal answers"] == 1 and rows["float32"]["difference of log p"] < 1e-3
