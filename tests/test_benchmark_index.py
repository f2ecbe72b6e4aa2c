"""The benchmark of the index types, on a few thousand vectors."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import index as benchmark
from rag.errors import UserError

COLUMNS = {
    *("type", "vectors", "build_s", "build_cpu_s", "build_peak_mb", "file_mb", "open_ms"),
    *("anon_mb_after_query", "ms_per_query", "cpu_ms_per_query", "recall_at_50"),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_each_type_gets_a_row_and_none_is_measured_twice(tmp_path, capsys):
    file, data = tmp_path / "rows.json", tmp_path / "data"
    command = ["--json", str(file), "--vectors", "3000", "--dim", "24", "--folder", str(data), "--types"]
    benchmark.main([*command, "ivf_sq8"])
    rows = json.loads(file.read_text())
    written = file.stat().st_mtime_ns
    benchmark.main([*command, "ivf_sq8"])
    assert file.stat().st_mtime_ns == written and [row["type"] for row in rows] == ["ivf_sq8"]
    for row in rows:
        assert row.keys() >= COLUMNS
        assert row["vectors"] == 3000 and row["recall_at_50"] >= 0.98
        assert 0 < row["anon_mb_after_query"] + 1 and 0 < row["open_ms"] < 1000
    assert rows[0]["factory"] == "IVF64,SQ8"
    assert rows[0]["file_mb"] == pytest.approx((3000 * (24 + 8) + 64 * 24 * 4) / 1e6, abs=0.01)
    assert "ivf_sq8" in capsys.readouterr().out
    truth, queries = (np.load(data / "3000x24" / f"{name}.npy") for name in ("truth", "queries"))
    everything = np.concatenate(
        [np.load(each) for each in sorted((data / "3000x24" / "vectors").glob("*.npy"))]
    )
    expected = np.argsort(-(queries[benchmark.TUNING :] @ everything.T), axis=1)[:, :50]
    assert np.mean([len(np.intersect1d(*pair)) for pair in zip(truth, expected, strict=True)]) > 49.9


def test_a_type_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match="no type sq9: --types takes flat,sq8"):
        benchmark.benchmark(tmp_path / "rows.json", 100, ["sq9"], 8, tmp_path)
