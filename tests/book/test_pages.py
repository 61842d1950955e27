"""What a page builds gives the numbers of the module: the functions of chapters, beside those that they explain."""

import ast

import mirror
import numpy as np
import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager
from miniatures import write_patch

import chapters
from lcfuse_core.book.chapter import Chapter
from lcfuse_core.data import legends, patches, source
from lcfuse_core.data.source import PatchStack
from lcfuse_core.data.streamed import open_source
from lcfuse_core.mapping.predict import Tiling, Window, blend
from lcfuse_core.methods import baselines, ensemble, few_cells
from lcfuse_core.models import forest, losses, transition
from lcfuse_core.scoring import protocol, scores
from lcfuse_core.training import loop


def page(name, *wanted, **given):
    """
    The names of a chapter after its imports, and the functions, classes and values of the names *wanted*.

    *given* are the names that these need from other cells.
    """
    names, missing = dict(given), set(wanted)
    for cell in chapters.code_cells(chapters.read(name)):
        for node in ast.parse(TransformerManager().transform_cell(cell.source)).body:
            assigned = node.targets if isinstance(node, ast.Assign) else []
            made = {leaf.id for target in assigned for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
            made |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
            if isinstance(node, ast.Import | ast.ImportFrom) or made & set(wanted):
                exec(compile(ast.Module([node], []), name, "exec"), names)
                missing -= made
    assert not missing, f"{name} no longer defines {missing}"
    return names


@pytest.fixture(scope="module")
def patch():
    """A patch of the small world, with a reference."""
    return patches.read_patch(protocol.evaluation_patches(mirror.small_world() / "dfc2020").iloc[0])


@pytest.fixture(scope="module")
def here():
    """An experiment on the small world with short trainings."""
    roots = {"train_root": str(mirror.small_world() / "sen12ms"), "data_root": str(mirror.small_world() / "dfc2020")}
    return Chapter("fusion", {"profile": "smoke", "seed": 0, "steps": 8, "crop": 32, "batch": 4, **roots})


def test_baselines(patch):
    """Nearest usable label, interpolation, and sub-pixel swapping, in which ties may be broken otherwise."""
    functions = "fill", "interpolate", "attraction", "swap", "swap_in_cell"
    mine = page("baselines", *functions, "rows", "distance", "WEIGHTS")
    label = protocol.modis_label_map(patch)
    assert (mine["fill"](label) == baselines.filled_map(patch)).all()
    np.testing.assert_allclose(mine["interpolate"](label), baselines.soft_label(patch), atol=1e-5)
    cells = source.patch_cells(patch)[:92, :92]
    scattered = np.random.default_rng(0).integers(0, 4, cells.shape).astype(np.uint8)
    swapped = mine["swap"](scattered, cells)
    assert (swapped != scattered).mean() > 0.1
    assert (swapped == baselines.swap(scattered, cells)).mean() > 0.99


def test_forest_of_baselines(here, patch):
    """The same trees, applied by scikit-learn and by the module."""
    mine = page("baselines", "opened", "statistics", "features", "train", "forest_map", here=here, seed=0)
    trees = mine["train"](n_pixels=2000)
    assert trees.n_features_in_ == 15
    by_module = forest.classify(forest.Forest(trees, mine["statistics"]), patch)
    assert (mine["forest_map"](trees, patch) == by_module).mean() > 0.999


def some_labels(n, *shape):
    """Labels 0..n - 1, and 255 where they are unknown."""
    labels = torch.randint(n + 1, shape, generator=torch.Generator().manual_seed(0))
    return torch.where(labels == n, legends.IGNORE, labels).to(torch.uint8)


def some_logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


COUNTS = torch.tensor([40, 0, 3, 7, 20, 1, 9, 90, 30])
"""Pixels of the nine coarse labels."""


def test_loss_and_class_weights_of_training():
    mine = page("training", "weighted_cross_entropy", "class_weights")
    weights = mine["class_weights"](COUNTS[:8], 0.5)
    torch.testing.assert_close(weights, losses.class_weights(COUNTS[:8], 0.5))
    given = some_logits(2, 8, 6, 6), some_labels(8, 2, 6, 6), weights
    torch.testing.assert_close(mine["weighted_cross_entropy"](*given), losses.cross_entropy(*given))


def test_losses_and_matrices_of_coarse_supervision():
    functions = "of_label", "assumed_matrix", "implied_distribution", "evaluate_loss", "estimate_matrix"
    values = "assumed", "matrix", "share", "implied", "USES_SAVANNA", "equal_weights"
    pixel_losses = "cross_entropy", "generalised", "symmetric", "bootstrapping", "forward", "posterior_qr"
    mine = page("coarse_supervision", *functions, *values, *pixel_losses, counts=COUNTS)
    labels, logits = some_labels(9, 2, 6, 6), some_logits(2, 8, 6, 6)
    for name in pixel_losses:
        of_module = losses.build_loss(name, mine["class_weights"], mine["matrix"].double(), COUNTS)
        usable = torch.where(labels > (8 if name in mine["USES_SAVANNA"] else 7), legends.IGNORE, labels)
        own = mine["evaluate_loss"](mine[name], logits, labels, mine["class_weights"])
        torch.testing.assert_close(own, of_module(logits, losses.Batch(usable)).float(), rtol=1e-3, atol=1e-5, msg=name)
    np.testing.assert_allclose(mine["assumed"], transition.from_accuracy(COUNTS.numpy()))
    prior = transition.class_prior(mine["assumed"], mine["share"])
    np.testing.assert_allclose(mine["implied"], transition.posterior(mine["assumed"], prior), atol=1e-4)
    p, label = some_logits(500, 8).double().softmax(1).numpy(), some_labels(9, 500).numpy()
    own = mine["estimate_matrix"](p[label < 9], label[label < 9], mine["assumed"])
    np.testing.assert_allclose(own, transition.estimate(p, label, mine["assumed"]), atol=1e-3)


def assert_loss_is_cell_mean(loss, logits, labels, cells, weights):
    of_module = losses.build_loss("cell_mean", weights)(logits, losses.Batch(labels, cells))
    torch.testing.assert_close(loss(logits, labels, cells, weights), of_module, rtol=1e-5, atol=1e-6)


def test_fine_tuning_of_fusion(here, patch):
    """Steps of AdamW enlarge what rounding changes at single pixels."""
    mine = page("fusion", "cell_mean", "fine_tune", seed=0, batch=4, crop=32)
    cells = torch.arange(2 * 36).reshape(2, 6, 6) // 9
    labels = some_labels(8, 2, 8)[torch.arange(2)[:, None, None], cells % 8]  # one in each cell
    assert_loss_is_cell_mean(mine["cell_mean"], some_logits(2, 8, 6, 6), labels, cells.int(), COUNTS[:8] / 20)
    run = here.network()
    own = mine["fine_tune"](run, here.target_source, 8)
    of_module, _ = here.adapted_network(run, steps=8, precision="float32")
    pixels = source.normalise(patch.s2, patch.s1, run.statistics)[None]
    with torch.inference_mode():
        by_page, before = (network(pixels).softmax(1)[0].numpy() for network in (own, run.network))
    assert np.abs(of_module(patch) - by_page).mean() < 1e-3
    assert np.abs(before - by_page).mean() > 0.01


def test_forest_and_fusion_of_fusion(here, tmp_path):
    """The default fusion, whole: members, their weights, the number of pixels and trees."""
    for number, split in enumerate(("test", "test", "validation")):
        write_patch(tmp_path, split, patch=number)
    small = Chapter("fusion", here.parameters | {"data_root": str(tmp_path), "steps": 4})
    network, _ = small.adapted_network(small.network())
    members = {"FCN, fine-tuned as in the ledger": small.shared("FCN", network)}
    values = "statistics", "trees", "predict_forest", "pair"
    mine = page("fusion", "labelled_pixels", "forest_member", "fused", *values, here=small, seed=0, members=members)
    of_module, _ = ensemble.fusion_of(small, for_few_cells=False)
    for patch in patches.read_many(small.rows)[0]:
        np.testing.assert_allclose(mine["fused"](patch), of_module.predict(patch), atol=1e-5)
        trained = forest.train_forest(small.target_source, seed=0)
        np.testing.assert_allclose(mine["predict_forest"](patch), forest.predict(trained, patch), atol=1e-6)


@pytest.mark.parametrize("chapter", ["fusion", "your_place"])
def test_third_weight(chapter):
    mine = page(chapter, "third_weight")
    for n, p in ((0, 0.3), (50, 1), (150, 0.5), (200, 1), (1000, 1)):
        assert mine["third_weight"](n, p) == pytest.approx(few_cells.third_weight(n, p))


def test_blending_of_maps():
    """Predictions that differ between windows: at the edge, where a network sees padding."""

    def predict(s2, s1):
        edge = np.zeros(s2.shape[1:])
        edge[0] = edge[:, -1] = 1
        return np.stack([s2[0] + k * edge for k in range(8)]).astype(np.float32)

    mine = page("maps", "starts", "side_weight", "blend")
    s2 = np.random.default_rng(0).random((13, 200, 150))
    own = mine["blend"](predict, s2, s2[:2], 64, 32, 8)
    tiling = Tiling((200, 150), 64, 32, 8)
    parts = (
        Window(i, j, np.ones((64, 64), bool), predict(s2[:, rows, cols], None))
        for i, rows in enumerate(tiling.rows)
        for j, cols in enumerate(tiling.cols)
    )
    for rows, by_module, _ in blend(parts, tiling, 8):
        np.testing.assert_allclose(own[:, rows], by_module, atol=1e-5)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The names of the chapter your_place before it trains: its synthetic place of two by two patches, read by it."""
    names = {"profile": "smoke", "seed": 0, "data_root": "", "download": False, "lon": 0.0, "lat": 0.0, "year": 2021}
    long = ("plt.show()", "course = train(", "trees = fit_forest(", "%pip")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LCFUSE_DATA", str(tmp_path_factory.mktemp("place")))
        for cell in chapters.code_cells(chapters.read("your_place")):
            if "parameters" not in chapters.tags(cell) and not any(part in cell.source for part in long):
                exec(cell.source, names)
            elif "trees = fit_forest(" in cell.source:  # the functions alone
                exec(cell.source.partition("\n\n\ntrees = ")[0], names)
            if "def third_weight" in cell.source:
                break
    whole_forest = names["fit_forest"]
    names["fit_forest"] = lambda known, n, n_trees: whole_forest(known, 1000, 4)
    names |= {"device": "cpu", "whole": [array.cpu() for array in names["whole"]]}
    return names


def test_training_of_your_place(place):
    """The first three steps; AdamW moves a weight by about the rate, even if its gradient is rounding."""
    assert place["n_side"] == 2
    assert place["steps"] <= few_cells.steps_for(place["n_cells"], 900)
    torch.manual_seed(0)
    own = place["FCN"](len(place["image"])).to(memory_format=torch.channels_last)
    pixels, labels, cells = place["batch"](torch.Generator().manual_seed(0), n=2)
    assert_loss_is_cell_mean(place["cell_mean"], own(pixels), labels, cells, place["weights"])
    torch.manual_seed(0)
    own = place["FCN"](len(place["image"])).to(memory_format=torch.channels_last)
    place["train"](own, 3)
    region = open_source(protocol.evaluation_patches(place["folder"]), "modis+savanna")
    plan = loop.TrainPlan(
        loss="cell_mean", labels="modis+savanna", learning_rate=4e-3, steps=3, seed=0, device="cpu", precision="float32"
    )
    of_module = loop.train(region, plan, progress=False).network
    for one, other in zip(own.parameters(), of_module.parameters(), strict=True):
        assert (one - other).abs().mean() < 1e-3


def test_preference_of_your_place(place):
    """The probability that the interpolated label explains held-out cells better than a forest of the others."""
    matrix = transition.from_accuracy(np.append(place["frequency"], 0))  # as the page, in the cell that draws the maps
    place["matrix"] = matrix
    whole = PatchStack.empty(1, place["height"], place["width"])
    whole.put(
        "place", place["s2"], place["layers"]["s1"], place["target"].astype("uint8"), place["cells"].astype("int32")
    )
    unseen = place["held_out"](place["target"])
    given = few_cells.held_out_label(whole, 0), lambda _: unseen[1], whole, matrix
    expected = few_cells.preference(*given, pixels=place["target"].size)
    assert place["preference"](place["target"], unseen) == pytest.approx(expected, abs=1e-3)


def test_average_accuracy_of_maps_and_of_the_sample_world():
    """Codes without a reference and Savanna are left out, as in the module."""
    rng = np.random.default_rng(0)
    reference, mapped = rng.choice([0, 1, 2, 3, 5, 7, 10], (2, 40, 40)).astype(np.uint8)
    reference[reference == 3] = 4  # the reference has no Savanna
    expected = scores.summarise(scores.confusion(reference, mapped)).aa
    sample = page("sample_world", "confusion", "average_accuracy")
    assert sample["average_accuracy"](sample["confusion"](reference, mapped)) == pytest.approx(expected)
    maps = page("maps", "average_accuracy", "DFC2020_CODES")
    assert maps["average_accuracy"](reference, mapped) == pytest.approx(expected)
