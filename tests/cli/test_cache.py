"""`swift-kd cache` on a folder of two teachers."""

import pytest
from typer.testing import CliRunner

from swift_kd_plugin.cli.main import app
from swift_kd_plugin.teacher.cache_identity import CacheIdentity
from swift_kd_plugin.teacher.teacher_cache import TeacherCache, shard_files
from tests.teacher.test_teacher_cache import IDENTITY, written

OTHER = CacheIdentity("u", ("a",), 8, "float32", "hidden", {"hidden": 64})


@pytest.fixture
def caches(tmp_path) -> list[TeacherCache]:
    return [written(tmp_path, identity=identity) for identity in (IDENTITY, OTHER)]


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cache", *map(str, words)])
    return result.exit_code, result.output


def test_show_names_teachers_and_sizes(caches, tmp_path):
    code, text = run("show", tmp_path)
    assert code == 0
    for cache in caches:
        size = sum(file.stat().st_size for file in shard_files(cache.folder))
        assert cache.folder.name in text
        assert f"40 samples, 360 tokens, {size:,} bytes ({size / 360:.1f} a token), 1 shard\n" in text
    assert "hidden, hidden 64, float32, 8 bits, 1 adapters; template unknown" in text
    (tmp_path / "empty").mkdir()
    assert run("show", tmp_path / "empty") == (0, f"{tmp_path / 'empty'} holds no rows of any teacher\n")


def test_check_names_what_is_damaged(caches, tmp_path):
    assert run("check", tmp_path) == (0, "2 shards are whole\n")
    (file,) = shard_files(caches[1].folder)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, text = run("check", tmp_path)
    assert code == 1
    assert f"swift-kd cache check: error: {file} is damaged; remove it" in text


def test_clear_takes_what_is_named_and_nothing_else(caches, tmp_path):
    first, second = (cache.folder for cache in caches)
    (first / "notes.txt").write_text("mine")
    (second / f".1-x.{'0' * 32}.swift-kd-part").write_bytes(b"left by a killed writer")
    assert run("clear", tmp_path)[0] == 1
    assert "has no teacher nobody; it has" in run("clear", tmp_path, "nobody")[1]
    (tmp_path / "weights.json").write_text("{}")
    assert run("clear", tmp_path, first.name)[0] == 0
    assert (tmp_path / "weights.json").exists()
    assert [file.name for file in first.iterdir()] == ["notes.txt"]
    assert len(list(second.iterdir())) == 1
    assert run("clear", tmp_path, "--all")[0] == 0
    assert not second.exists()
    assert not (tmp_path / "weights.json").exists()
    assert (first / "notes.txt").exists()
    assert "is no folder" in run("clear", tmp_path / "none", "x")[1]


@pytest.mark.parametrize("command", [("show",), ("check",), ("clear", "--all")])
def test_a_folder_that_is_no_cache_is_refused(caches, tmp_path, command):
    word, *flags = command
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "args.json").write_text("{}")
    code, text = run(word, run_folder, *flags)
    assert code == 1
    assert f"{run_folder} is no teacher cache: it holds args.json; give the folder of --kd_teacher_cache." in text
    above = tmp_path / "above"
    above.mkdir()
    (above / "cache").mkdir()
    caches[1].folder.rename(above / "cache" / caches[1].folder.name)
    assert f"(did you mean {above / 'cache'}?)" in run(word, above, *flags)[1]
    code, text = run(word, caches[0].folder, *flags)
    assert (code, "is what one teacher said; give the folder above" in text) == (1, True)


def test_an_empty_folder_is_no_whole_cache(tmp_path):
    assert run("check", tmp_path) == (0, f"{tmp_path} holds no rows of any teacher\n")
