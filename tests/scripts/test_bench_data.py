"""The benchmark of datasets runs through on few rows and writes what it measured."""

import json
from pathlib import Path

import pytest
import typer

from scripts.dev import bench_data


def run_bench(output: Path, rows: int = 300, **options) -> dict:
    bench_data.main(rows=rows, join=200, output=output, **{"check": False, **options})
    return json.loads(output.read_text())


def test_everything_is_measured(tmp_path: Path, monkeypatch, capsys):
    """What a way takes is given; `make bench-quick` measures it in processes of their own."""
    found = {"stock": {"rows": 300, "seconds": 2.0, "reading": 1.0}, "ours": {"rows": 200, "seconds": 4.0}}
    found["ours"] |= {"extra_mib": 5.0}
    monkeypatch.setattr(bench_data, "measure", lambda way, *_: found[way])
    result = run_bench(tmp_path / "bench.json")
    assert {line["dataset"]: line["ratio"] for line in result["datasets"]} == pytest.approx(
        {"rows": 4 / 3, "exp_noexp": 4 / 6, "mix": 4 / 6, "thinking_mix": 4 / 3}
    )
    assert [line["holds"] for line in result["datasets"]] == [True, None, True, True]
    assert result["join"]["holds"]
    assert result["join"]["bytes_a_row"] == pytest.approx(bench_data.JOIN_ROW_BYTES, rel=0.1)
    assert "ms-swift reads" in capsys.readouterr().out


def test_a_way_is_measured(tmp_path: Path):
    bench_data.write_files(tmp_path, 300, bench_data.ROW_BYTES)
    found = bench_data.measure("ours", tmp_path, "mix")
    assert found["rows"] == 428
    assert min(found["seconds"], found["peak_mib"]) > 0


def test_a_missed_target_is_an_error_on_request(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bench_data, "MOST_JOIN_MIB", 0)
    with pytest.raises(typer.Exit) as stop:
        run_bench(tmp_path / "bench.json", rows=0, check=True)
    assert stop.value.exit_code == 1
