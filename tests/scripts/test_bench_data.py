"""The benchmark of datasets runs through on few rows and writes what it measured."""

import json
from pathlib import Path

import pytest
import typer

from scripts.dev import bench_data


def run_bench(output: Path, rows: int = 300, **options) -> dict:
    bench_data.main(rows=rows, join=200, output=output, **{"check": False, **options})
    return json.loads(output.read_text())


def test_everything_is_measured(tmp_path: Path, capsys):
    result = run_bench(tmp_path / "bench.json")
    assert [line["dataset"] for line in result["datasets"]] == ["rows", "exp_noexp", "mix", "thinking_mix"]
    for line in result["datasets"]:
        assert line["rows"] == (428 if line["dataset"] == "mix" else 300)
        whole = line["stock_reading"] + line["stock_preprocessor"]
        assert line["ratio"] == pytest.approx(line["seconds"] / whole)
    assert result["join"]["rows"] == 200
    assert result["join"]["holds"]
    assert result["join"]["bytes_a_row"] == pytest.approx(bench_data.JOIN_ROW_BYTES, rel=0.1)
    assert "ms-swift reads" in capsys.readouterr().out


def test_a_missed_target_is_an_error_on_request(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bench_data, "MOST_JOIN_MIB", 0)
    with pytest.raises(typer.Exit) as stop:
        run_bench(tmp_path / "bench.json", rows=0, check=True)
    assert stop.value.exit_code == 1
