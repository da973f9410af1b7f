from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.judging import Sample
from swift_kd_plugin.generation.shard_store import Record, Store

IDENTITY = {"model": "base (1234)", "temperature": 1.0, "stop_words": ["</s>"]}


def open_store(folder, identity=IDENTITY, tasks=5, shard_size=2, **more) -> Store:
    return Store(folder, identity, tasks, shard_size, **more)


samples = st.builds(
    Sample,
    st.text(st.characters(codec="utf-8")),
    st.integers(0, 9),
    st.sampled_from(["stop", "length"]),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.text(st.characters(codec="utf-8")),
)


@given(found=st.lists(st.lists(samples, max_size=3), min_size=2, max_size=2))
def test_what_is_written_is_read(found, tmp_path_factory):
    records = [Record(number + 2, 7, tuple(some)) for number, some in enumerate(found)]
    with open_store(tmp_path_factory.mktemp("store")) as store:
        store.write_part(1, records[:1])
        assert store.read_part(1) == records[:1]
        assert not store.is_whole(1)
        store.write(1, records[::-1], 1.25)
        assert store.read(1) == (records, 1.25)
        assert store.read_part(1) == []
    with open_store(store.folder) as again:
        assert [again.is_whole(shard) for shard in range(again.shards)] == [False, True, False]
        assert again.read(1)[0] == records


def test_shards_cover_all_tasks(tmp_path):
    with open_store(tmp_path, tasks=5, shard_size=2) as store:
        assert [list(store.tasks_of(shard)) for shard in range(store.shards)] == [[0, 1], [2, 3], [4]]
    with open_store(tmp_path / "none", tasks=0) as store:
        assert store.shards == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 0.7}, "its temperature is 1.0, and now it is 0.7"),
        ({"model": "base (5678)", "temperature": 0.7}, 'its model is "base (1234)", and now it is "base (5678)"'),
        ({"n": 4}, "its n is null, and now it is 4"),
    ],
)
def test_the_folder_of_another_run_is_refused_with_the_first_difference(tmp_path, changes, said):
    with open_store(tmp_path) as store:
        store.write(0, [Record(0), Record(1)], 1)
    with pytest.raises(KDError) as error:
        open_store(tmp_path, {**IDENTITY, **changes})
    assert said in str(error.value)
    assert "--overwrite" in str(error.value)
    with open_store(tmp_path) as store:
        assert store.is_whole(0)
    with open_store(tmp_path, {**IDENTITY, **changes}, overwrite=True) as store:
        assert not store.is_whole(0)


def test_overwriting_leaves_what_is_not_ours(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with open_store(tmp_path) as store:
        store.write(0, [Record(0), Record(1)], 1)
    open_store(tmp_path, {}, overwrite=True).close()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_is_overwritten_is_moved_aside(tmp_path):
    for seed in range(3):
        with open_store(tmp_path, {"seed": seed}, overwrite=True) as store:
            store.write(0, [Record(0), Record(1)], seed)
            (tmp_path / "responses.jsonl").write_text(f"{seed}\n")
    assert [(tmp_path / f"replaced-{n}" / "responses.jsonl").read_text() for n in (1, 2)] == ["0\n", "1\n"]
    assert (tmp_path / "replaced-2" / "shards" / "000000.jsonl").is_file()
    assert not (tmp_path / "replaced-3").exists()


def test_responses_of_unknown_origin_are_left_alone(tmp_path):
    for name in ("responses.jsonl", "report.html"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("{}\n")
        with pytest.raises(KDError, match=f"has {name} of an unknown run"):
            open_store(folder)
        assert (folder / name).read_text() == "{}\n"
        assert not (folder / "shards").exists()


def test_two_runs_cannot_write_one_folder(tmp_path):
    with open_store(tmp_path), pytest.raises(KDError, match="is in use by a run that was started as process"):
        open_store(tmp_path)
    open_store(tmp_path).close()


def test_files_that_a_killed_process_left_half_written_go(tmp_path):
    open_store(tmp_path).close()
    part = f"{uuid4().hex}.swift-kd-part"
    left = [tmp_path / "shards" / f".000000.jsonl.{part}", tmp_path / f".responses.jsonl.{part}"]
    mine = [tmp_path / ".notes.json.bak", tmp_path / "shards" / ".a.jsonl.1", tmp_path / f".secrets.{uuid4().hex}"]
    for file in (*left, *mine):
        file.write_text('{"task": 0, "pro')
    with open_store(tmp_path) as store:
        assert not any(file.exists() for file in left)
        assert all(file.exists() for file in mine)
        assert not store.is_whole(0)


@pytest.mark.parametrize("content", ["", '{"seconds": 1}\n', '{"seconds": 1}\n{"task": 0', "[]\n"])
def test_a_damaged_shard_is_named(tmp_path, content):
    with open_store(tmp_path) as store:
        (tmp_path / "shards" / "000000.jsonl").write_text(content)
        with pytest.raises(KDError, match=r"000000.jsonl is damaged; remove it"):
            store.read(0)


def test_a_damaged_manifest_is_named(tmp_path):
    open_store(tmp_path).close()
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(KDError, match=r"manifest.json cannot be read"):
        open_store(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KDError, match="cannot be written"):
        open_store(tmp_path / "file" / "out")
    with pytest.raises(KDError, match="cannot be written: it is a file; choose another output folder"):
        open_store(tmp_path / "file")
