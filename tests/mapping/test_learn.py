"""Training on the coarse labels of a scene, and the rule for few cells."""

from functools import partial

import numpy as np
import pytest
from places import first_band, member, scene_arrays, write

from lcfuse_core.data.legends import IGNORE, SAVANNA_INDEX, SCORED
from lcfuse_core.errors import DataError
from lcfuse_core.mapping import learn, make, scene
from lcfuse_core.mapping.coarse import open_coarse
from lcfuse_core.mapping.predict import InterpolatedLabel, Network, Tiling, strips
from lcfuse_core.methods import baselines, few_cells
from lcfuse_core.methods.fusion import FusionPlan, combine

ALL = slice(0, 160), slice(0, 192)


@pytest.fixture
def inputs(tmp_path):
    """Files of a scene of about 13 cells: dark grassland beside bright cropland, a cell of Savanna, a gap."""
    s2, s1 = scene_arrays(rows=160, cols=192)
    s2 = s2 // 4 + np.where(np.arange(192) < 96, 500, 3000).astype(np.uint16)
    s2[:, :20, :20] = 0
    igbp = np.full((1, 160, 192), 10, np.uint8)
    igbp[0, :, 96:] = 12
    igbp[0, :30, 150:] = 9  # Savanna
    files = write(tmp_path / "s2.tif", s2), write(tmp_path / "s1.tif", s1)
    return make.Inputs((files[0],), (files[1],), write(tmp_path / "c.tif", igbp), "igbp")


@pytest.fixture
def labelled(inputs):
    with (
        scene.open_scene(inputs.s2, inputs.s1) as opened,
        open_coarse(inputs.coarse, opened.grid, "igbp") as coarse,
    ):
        yield opened, coarse


@pytest.fixture
def small(monkeypatch):
    """Short trainings of a narrow network and a small forest."""
    monkeypatch.setattr(learn, "train_forest", partial(learn.train_forest, n_pixels=2000, n_trees=5))
    monkeypatch.setattr(learn, "TrainPlan", partial(learn.TrainPlan, width=4))
    monkeypatch.setattr(learn, "adaptation_plan", partial(learn.adaptation_plan, batch=4))
    monkeypatch.setattr(learn, "_STEPS", 40)
    monkeypatch.setattr(few_cells, "_N_TREES", 5)


def probabilities(one, opened, where=ALL):
    prepared = one.prepare(opened.read(*where), where)
    return (one.forward(prepared, 1) if isinstance(one, Network) else prepared)()


def test_training_windows_have_the_labels_and_cells_of_their_pixels(labelled, monkeypatch):
    """Pixels without data and Savanna are ignored; windows are disjoint, and at most as many as allowed."""
    opened, coarse = labelled
    monkeypatch.setattr(learn, "_WINDOW_PX", 64)
    windows = learn._training_windows(opened, coarse, crop=32, seed=0)
    corners = {(rows.start, cols.start) for rows, cols in windows}
    assert len(corners) == len(windows) == 2 * 3  # 9 per cent of the corner window have no data: kept
    stack = learn._labelled_stack(opened, coarse, windows)
    for number, window in enumerate(windows):
        part, labels = opened.read(*window), coarse.labels(*window)
        known = part.valid & (labels < SAVANNA_INDEX)
        np.testing.assert_array_equal(stack.labels[number].numpy(), np.where(known, labels, IGNORE))
        np.testing.assert_array_equal(stack.s2[number].numpy(), part.s2)
        cells = stack.cells[number].numpy()
        assert 1 < cells.max() < 9  # 46 pixels per cell
        assert all(len(np.unique(labels[cells == cell])) <= 1 for cell in np.unique(cells))
    monkeypatch.setattr(learn, "_MAX_WINDOWS", 2)
    assert len(learn._training_windows(opened, coarse, crop=32, seed=0)) == 2
    with pytest.raises(DataError, match="expected 500 per side"):
        learn._training_windows(opened, coarse, crop=500, seed=0)
    coarse.codes[:] = 255
    with pytest.raises(DataError, match="no window for training"):
        learn._training_windows(opened, coarse, crop=32, seed=0)


@pytest.mark.parametrize("start", [False, True])
def test_network_and_forest_are_trained_on_the_scene_and_found_again(labelled, tmp_path, small, start):
    """Fresh or given weights learn dark from bright in sixty steps; a second call reads the checkpoint."""
    opened, coarse = labelled
    given = [member(tmp_path / "both.safetensors")] if start else []
    labels = coarse.labels(*ALL)
    known = opened.read(*ALL).valid & (labels < SAVANNA_INDEX)

    def agreement(one):
        return (probabilities(one, opened).argmax(axis=0) == labels)[known].mean()

    (trained, forest, third), _ = learn.train_on_scene(opened, coarse, given, tmp_path / "out", steps=60)
    assert min(agreement(trained), agreement(forest)) > 0.85
    assert third.digest == given[0].digest if start else isinstance(third, InterpolatedLabel)
    [kept] = (tmp_path / "out").glob("trained-*/last.safetensors")
    written = kept.stat().st_mtime_ns
    again = learn.train_on_scene(opened, coarse, given, tmp_path / "out", steps=60)[0][0]
    assert kept.stat().st_mtime_ns == written
    assert again.digest == trained.digest
    learn.train_on_scene(opened, coarse, given, tmp_path / "out", steps=2)
    assert len(list((tmp_path / "out").glob("trained-*"))) == 2  # other steps, another network


def test_with_few_cells_a_third_member_is_weighted_by_held_out_cells(labelled, tmp_path, small, monkeypatch):
    """The estimate uses the whole area as one patch; steps are in proportion; the others share the rest equally."""
    opened, coarse = labelled
    patches, reports = [], []
    original = few_cells.held_out_forest

    def spied(source, seed):
        patches.append((len(source), source.shape))
        return original(source, seed)

    monkeypatch.setattr(few_cells, "held_out_forest", spied)
    monkeypatch.setattr(learn, "_WINDOW_PX", 64)
    members, record = learn.train_on_scene(opened, coarse, [], tmp_path / "out", report=reports.append)
    assert patches == [(1, (128, 192))]
    assert record["cells"] == pytest.approx((128 * 192 - 400 - 30 * 42) / few_cells.CELL_PX, abs=0.5)
    assert record["steps"] == few_cells.steps_for(record["cells"], 40) < 40
    assert 0 < record["preference"] < 1
    assert record["third_weight"] == pytest.approx(
        few_cells.third_weight(record["cells"], record["preference"]), abs=1e-3
    )
    network, forest, third = (one.weight for one in members)
    assert network == forest == pytest.approx((1 - third) / 2)
    assert third == pytest.approx(record["third_weight"], abs=1e-4)
    assert third > few_cells._LEAST_WEIGHT
    assert f"a third member, the interpolated label, with a weight of {third:.2f}" in reports[0]
    given = [member(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    members, record = learn.train_on_scene(opened, coarse, given, tmp_path / "adapted", steps=2)
    assert [one.name for one in members[3:]] == ["1", "2"]
    assert sum(one.weight for one in members) == pytest.approx(1)
    assert record["steps"] == 2  # given explicitly


@pytest.mark.parametrize("few", [True, False])
def test_the_map_is_the_weighted_mean_of_its_members(inputs, labelled, tmp_path, small, monkeypatch, few):
    """With few cells the interpolated label is the third member; the record has cells, steps and weights."""
    monkeypatch.setattr(few_cells, "FEW_CELLS", 200.0 if few else 10.0)
    opened, coarse = labelled
    reports = []
    made = make.make_map(inputs, [], tmp_path / "map", make.MapOptions(window=256), report=reports.append)
    training, in_record = made.record["training"], made.record["members"]
    assert reports[0] == "training a network and a random forest on the coarse map of this scene"
    if few:
        assert "labelled coarse cells, fewer than 200" in reports[1]
        assert training["third_member"] == "the interpolated label"
        assert [one["name"] for one in in_record[1:]] == ["random forest", "interpolated label"]
        assert training["third_weight"] > 0
        assert in_record[2]["weight"] == pytest.approx(training["third_weight"])
    else:
        assert len(reports) == 1
        assert training.pop("cells") == pytest.approx(11.2, abs=0.5)
        assert training == {"steps": 40, "third_member": None, "third_weight": 0.0, "preference": None}
        assert [one["weight"] for one in in_record] == [0.5, 0.5]
    members = learn.train_on_scene(opened, coarse, [], made.folder, steps=training["steps"])[0]
    mean = combine([probabilities(one, opened) for one in members], [one.weight for one in members])
    best = np.array(SCORED)[mean.argmax(axis=0)]
    highest = np.sort(mean, axis=0)
    clear = opened.read(*ALL).valid & (highest[-1] - highest[-2] > 1e-3)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(first_band(made.path())[clear], best[clear])
    assert make.make_map(inputs, [], tmp_path / "map", make.MapOptions(window=256)).found


def test_the_interpolated_label_of_windows_is_that_of_the_whole(tmp_path):
    """A scene wider than window and margin: each window has the values of the whole exactly, blended ones almost."""
    s2, _ = scene_arrays(rows=200, cols=420)
    igbp = np.random.default_rng(0).choice(np.array([1, 10, 12, 17, 9], np.uint8), (1, 5, 10))
    igbp = np.repeat(np.repeat(igbp, 46, axis=1), 46, axis=2)[:, :200, :420]
    with (
        scene.open_scene((write(tmp_path / "s2.tif", s2),)) as opened,
        open_coarse(write(tmp_path / "c.tif", igbp), opened.grid, "igbp") as coarse,
    ):
        third = InterpolatedLabel(coarse)
        whole = baselines.interpolated(coarse.labels(slice(0, 200), slice(0, 420)))
        for where in (np.s_[0:64, 0:64], np.s_[100:200, 170:260], np.s_[30:90, 356:420]):
            np.testing.assert_array_equal(probabilities(third, opened, where), whole[(slice(None), *where)])
        layers = {}
        for side in (96, 420):
            tiling = Tiling(opened.grid.shape, side, 24, 6)
            made = strips(opened, [third], tiling, FusionPlan(), layers=("landcover", "confidence", "probabilities"))
            parts = [{name: pixels.copy() for name, pixels in strip.items()} for _, strip in made]
            layers[side] = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    steps = np.abs(layers[96]["probabilities"].astype(int) - layers[420]["probabilities"].astype(int))
    assert steps.max() <= 1  # rounding, in steps of 0.004
    assert (layers[96]["landcover"] == layers[420]["landcover"]).mean() > 0.9999
