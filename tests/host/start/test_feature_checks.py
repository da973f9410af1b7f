"""Which layers are matched, and which maps, models and checkpoints are refused by name."""

import json
from types import SimpleNamespace

import pytest

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.feature_checks import check_features, spread


@pytest.fixture
def check(tmp_path):
    """Checks a student of 4 layers of 64 and a teacher of 8 layers of 128, or what else is said."""

    def run(layers="auto", projection="linear", teacher=(8, 128), saved=None, **changes):
        for name, (count, size) in (("student", (4, 64)), ("teacher", teacher)):
            (tmp_path / name).mkdir(exist_ok=True)
            config = {"num_hidden_layers": count, "hidden_size": size}
            (tmp_path / name / "config.json").write_text(json.dumps({"text_config": config}))
        if saved is not None:
            (tmp_path / "args.json").write_text(json.dumps(saved))
        flags = {"kd_feature_weight": 0.5, "kd_feature_weight_final": None, "kd_feature_layers": layers}
        flags |= {"kd_feature_projection": projection, "tuner_type": "full", "finetune": False, "no_load_optim": False}
        flags |= {"mcore_adapter": None, "mcore_model": None if saved is None else str(tmp_path), **changes}
        return check_features(SimpleNamespace(**flags), str(tmp_path / "student"), str(tmp_path / "teacher"))

    return run


def test_layers_and_sizes(check):
    assert check("1:3, 4:8") == ([(1, 3), (4, 8)], (64, 128))
    assert check() == ([(1, 2), (2, 4), (3, 6), (4, 8)], (64, 128))
    assert check(projection="none", teacher=(8, 64)) == ([(1, 2), (2, 4), (3, 6), (4, 8)], (64, 64))
    assert check("nonsense", kd_feature_weight=0.0) is None
    assert check("1:8", kd_feature_weight=0.0, kd_feature_weight_final=1.0) is not None


@pytest.mark.parametrize(
    ("layers", "teacher_layers", "pairs"),
    [
        (28, 36, [(7, 9), (14, 18), (21, 27), (28, 36)]),
        (2, 36, [(1, 18), (2, 36)]),
        (36, 3, [(12, 1), (24, 2), (36, 3)]),
        (1, 1, [(1, 1)]),
    ],
)
def test_auto_spreads_evenly_up_to_the_last_layers(layers, teacher_layers, pairs):
    assert spread(layers, teacher_layers) == pairs


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("5:8", "names layer 5 of --model .*, which has 4; give layers from 1 to 4"),
        ("1:9", "names layer 9 of --teacher_model .*, which has 8; give layers from 1 to 8"),
        ("0:1", "--kd_feature_layers 0:1: layers are counted from 1"),
        ("1:4,2:4", "2:4 does not lie behind 1:4; .* both numbers must grow"),
        ("2:4,1:6", "1:6 does not lie behind 2:4"),
        ("1-2", "--kd_feature_layers 1-2 is no list of student:teacher layers, such as 4:8,8:16"),
        ("", "is no list"),
        ("1:2,", "is no list"),
    ],
)
def test_maps_that_cannot_be(check, layers, said):
    with pytest.raises(KDError, match=said):
        check(layers)


def test_sizes_that_differ_need_a_projection(check):
    with pytest.raises(KDError, match="--model has 64 and --teacher_model has 128; use --kd_feature_projection linear"):
        check(projection="none")


SAVED = {"kd_feature_pairs": [[1, 2]], "kd_feature_sizes": [64, 128]}


def test_a_resumed_run_keeps_its_projections(check):
    check("1:2", saved=SAVED)
    check("1:2", teacher=(8, 64), saved={})
    check("1:2", teacher=(8, 64), saved={**SAVED, "kd_feature_sizes": [64, 64]})
    check("2:4", saved=SAVED, no_load_optim=True)
    for layers, saved, weight, said in (
        ("2:4", SAVED, 0.5, "projections of 1:2 .* and this run has them of 2:4"),
        ("2:4", {}, 0.5, "projections of no layers .* and this run has them of 2:4"),
        ("auto", SAVED, 0.0, "projections of 1:2 .* and this run has them of no layers"),
    ):
        with pytest.raises(KDError, match=f"{said}: its optimizer .*--no_load_optim true --no_load_rng true"):
            check(layers, saved=saved, kd_feature_weight=weight)
