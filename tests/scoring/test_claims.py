"""Claims: a verdict comes from ledger lines of the kind of data that the claim needs, by the rule in the file."""

import numpy as np
import pytest
import yaml

from lcfuse_core import _runtime
from lcfuse_core.errors import DataError
from lcfuse_core.scoring import claims, ledger
from lcfuse_core.scoring.scores import summarise

BOOK_CLAIMS = claims.read_claims()

BASE = {
    "id": "better", "source": "yu2020", "at": "abstract", "sentence": "It is.", "means": "By AA.",
    "relation": "more than", "margin": 0, "where": {"parameters.method": "ours"},
    "against": {"parameters.method": "MODIS label"}, "protocol": {"profile": "full"}, "command": "run it",
}  # fmt: skip
FIGURE = BASE | {"relation": "equals", "reported": 50, "margin": 3, "against": {}}


def claim(**changes):
    return claims.Claim(**(BASE | changes))


def figure(**changes):
    return claims.Claim(**(FIGURE | changes))


def counts_of(recalls, n_pixels=1000):
    """Regions with forest alone: so much of it found in each."""
    found = {}
    for number, recall in enumerate(recalls):
        counts = np.zeros((11, 11), int)
        counts[1, 1] = round(recall * n_pixels)
        counts[1, 10] = n_pixels - counts[1, 1]
        found[f"region {number}"] = counts
    return found


def line(method, recalls, *, seed=0, data_kind="real", profile="full", with_counts=True, data="abc", **more):
    """A ledger line of a run, made up here: nothing of the kind has been run."""
    counts = counts_of(recalls)
    scores = ledger._plain(summarise(sum(counts.values())), "") | {"counts": counts if with_counts else {}} | more
    return ledger.new_entry(
        "evaluation", {"method": method}, scores, label_regime="coarse only", profile=profile,
        seeds={"world": 0, "training": seed}, synthetic=data_kind == "synthetic", data_kind=data_kind,
        hashes={"evaluation": data},
    )  # fmt: skip


def verdict(one, *lines):
    return claims.verdict(one, claims.examine(one, lines))


HARD = [0.2, 0.5, 0.8, 0.4, 0.6, 0.7, 0.3]
EASIER = [recall + 0.1 for recall in HARD]


def test_the_book_holds_the_claims_of_the_paper_and_the_published_figures():
    """All six points of the abstract, each official number that we set ourselves against; ids once each."""
    assert sum(one.source == "yu2020" for one in BOOK_CLAIMS) == 6
    assert {one.reported for one in BOOK_CLAIMS} >= {46.45, 43.34, 29.82, 57.49, 61.42, 52.3, None}
    assert all(one.reported is None for one in BOOK_CLAIMS if one.source == "yu2020"), "it has no number"
    assert all(one.needs == "real" for one in BOOK_CLAIMS)


def test_without_a_real_run_nothing_is_claimed_of_real_places():
    """The committed ledger is synthetic: every claim is still to be run, with its command, download and hours."""
    entries, _ = ledger.read_entries(_runtime.SHIPPED / "seeds.jsonl")
    table = claims.table(BOOK_CLAIMS, entries.values())
    real = table[table["data"] == claims.MARKS["real"]]
    assert len(real) == len(BOOK_CLAIMS)
    assert real["verdict"].isin(["not run yet", "not testable here"]).all()
    todo = claims.outstanding(BOOK_CLAIMS, entries.values())
    assert sorted(", ".join(todo.index).split(", ")) == sorted(one.id for one in BOOK_CLAIMS)
    commands = todo.loc[todo["verdict"] == "not run yet", "command, or why none"]
    assert len(commands)
    assert commands.str.match(r"python -m lcfuse_core (run \w+|compare) --profile full ").all()
    assert todo["download"].str.contains("SEN12MS|–").all()
    others = table.drop(real.index)
    assert (others["data"] == claims.MARKS["synthetic"]).all()
    assert (others["verdict"] == "no verdict: other data").all()
    shown = others.loc[others["reported"] != "not reported", "difference"]
    assert (shown == "–").all(), "a figure of real places was held against the sample"


def test_a_line_of_a_real_run_turns_a_claim_into_a_result(tmp_path):
    """The same claim before and after two lines are in a ledger."""
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, line("ours", HARD, data_kind="synthetic"))
    ledger.append(path, line("MODIS label", EASIER, data_kind="synthetic"))
    entries, _ = ledger.read_entries(path)
    before = claims.table([claim()], entries.values())
    assert before["verdict"].tolist() == ["no verdict: other data", "not run yet"]
    assert claims.outstanding([claim()], entries.values()).loc["better"].tolist() == [
        "not run yet",
        "run it",
        "none",
        "unknown",
    ]
    ledger.append(path, line("ours", EASIER))
    ledger.append(path, line("MODIS label", HARD))
    entries, _ = ledger.read_entries(path)
    after = claims.table([claim()], entries.values())
    assert after["data"].tolist() == ["○ synthetic", "● real"]
    assert after["verdict"].tolist() == ["no verdict: other data", "reproduced"]
    assert after["difference"].tolist() == ["-10.0", "+10.0"]
    assert after["interval"].tolist() == ["-10.0 to -10.0", "10.0 to 10.0"]
    assert claims.summary([claim()], entries.values()).loc["reproduced", "which"] == "better"
    assert claims.outstanding([claim()], entries.values()).empty


def test_a_difference_that_regions_do_not_agree_on_is_no_result():
    """Better by 10 points on average, but by 60 in one region and worse in others: the interval holds 0."""
    mixed = [0.9, 0.45, 0.75, 0.35, 0.65, 0.75, 0.35]
    modis = line("MODIS label", HARD)
    assert verdict(claim(), line("ours", mixed), modis) == "partly"
    assert verdict(claim(), line("ours", EASIER), modis) == "reproduced"
    assert verdict(claim(margin=20), line("ours", EASIER), modis) == "not reproduced"
    assert verdict(claim(), line("ours", [r - 0.1 for r in HARD]), modis) == "not reproduced"


def test_without_counts_a_difference_is_partly_shown_at_best():
    assert claims.examine(figure(), [line("ours", HARD, with_counts=False)])["real"].interval is None
    lines = [line("ours", EASIER, with_counts=False), line("MODIS label", HARD, with_counts=False)]
    assert verdict(claim(), *lines) == "partly"
    assert verdict(claim(margin=20), *lines) == "not reproduced"


def test_the_interval_is_that_of_the_first_seed_whose_lines_have_counts():
    """Old lines without counts keep their place in the mean; one newer pair with counts is enough for an interval."""
    modis = [line("MODIS label", HARD, seed=seed, with_counts=seed == 1) for seed in (0, 1)]
    ours = [line("ours", EASIER, seed=seed, with_counts=seed == 1) for seed in (0, 1)]
    found = claims.examine(claim(), [*ours, *modis])["real"]
    assert sorted(found.seeds) == [0, 1]
    assert found.interval.value == pytest.approx(0.1)
    assert verdict(claim(), *ours, *modis) == "reproduced"


@pytest.mark.parametrize("score", ["oa", "miou_8", "miou_9"])
def test_other_scores_have_intervals_too(score):
    """Forest alone, so that OA is AA and mIoU-8 too; over nine classes it is a ninth of that."""
    found = claims.examine(figure(score=score), [line("ours", HARD)])["real"]
    assert 100 * found.interval.value == pytest.approx(found.ours)
    assert found.ours == pytest.approx(50 / 9 if score == "miou_9" else 50)


def test_a_score_near_borders_is_tested_by_its_own_counts():
    """Ahead on the whole, behind near borders: the claim of ten metres is about the latter."""
    parts = {}
    for method, recalls in (("ours", HARD), ("MODIS label", EASIER)):
        counts = counts_of(recalls)
        parts[method] = {"aa": summarise(sum(counts.values())).aa, "counts": counts}
    lines = [line("ours", EASIER, near_borders=parts["ours"])]
    lines += [line("MODIS label", HARD, near_borders=parts["MODIS label"])]
    assert verdict(claim(), *lines) == "reproduced"
    found = claims.examine(claim(score="near_borders.aa"), lines)["real"]
    assert found.difference == pytest.approx(-10)
    assert found.interval.value == pytest.approx(-0.1)
    assert verdict(claim(score="near_borders.aa"), *lines) == "not reproduced"
    assert verdict(claim(score="near_borders.aa"), line("ours", EASIER), line("MODIS label", HARD)) == "not run yet"


def test_claims_name_methods_that_there_are():
    """A name that no line will ever have would leave a claim to be run for good."""
    from lcfuse_core.methods.registry import METHODS

    fine = {"DeepLabv3+, supervised, source regions"}  # a bound: `make seeds`
    named = [{**one.where, **one.against}.get("parameters.method") for one in BOOK_CLAIMS]
    assert {name for name in named if name} <= set(METHODS) | fine
    assert all(name for one, name in zip(BOOK_CLAIMS, named, strict=True) if one.relation != "untestable")


def test_claims_about_the_test_set_need_all_of_it():
    """A run on a few of the 5,128 patches is another protocol, or none."""
    for one in BOOK_CLAIMS:
        if one.relation not in ("untestable", "was done") or one.id == "tested-on-dfc2020":
            assert (one.where | one.protocol)["scores.n_patches"] == 5128


def test_the_ledger_of_methods_is_read_after_that_of_the_seeds(tmp_path, monkeypatch):
    """Where both have a method and seed, the newer line counts; where there is only one file, that is enough."""
    monkeypatch.setattr(claims, "SHIPPED", tmp_path)
    ledger.append(tmp_path / "seeds.jsonl", line("ours", HARD, with_counts=False))
    assert len(claims.evidence()) == 1
    ledger.append(tmp_path / "methods.jsonl", line("ours", EASIER))
    found = claims.examine(figure(), claims.evidence())["real"]
    assert found.ours == pytest.approx(60)
    assert found.interval is not None


@pytest.mark.parametrize("kind", ["semi-real", "unverified"])
def test_other_data_give_no_verdict_and_have_their_own_row(kind):
    lines = [line("ours", EASIER, data_kind=kind), line("MODIS label", HARD, data_kind=kind)]
    table = claims.table([claim()], lines)
    assert table["data"].tolist() == [claims.MARKS[kind], "● real"]
    assert table["verdict"].tolist() == ["no verdict: other data", "not run yet"]


def test_only_maps_of_the_same_data_are_compared():
    assert verdict(claim(), line("ours", EASIER, data="other"), line("MODIS label", HARD)) == "not run yet"
    assert verdict(claim(), line("ours", EASIER), line("MODIS label", HARD, seed=1)) == "not run yet"


def test_another_protocol_is_named():
    """The same numbers, but not under the rules that the claim states."""
    lines = [line("ours", EASIER, profile="colab"), line("MODIS label", HARD, profile="colab")]
    assert verdict(claim(), *lines) == "within the margin under another protocol"
    worse = [line("ours", HARD, profile="colab"), line("MODIS label", EASIER, profile="colab")]
    assert verdict(claim(), *worse) == "not reproduced"


@pytest.mark.parametrize(
    ("relation", "recalls", "expected"),
    [
        ("equals", [0.5] * 7, "reproduced"),
        ("equals", [0.53] * 7, "reproduced"),
        ("equals", [0.55] * 7, "not reproduced"),
        ("equals", [0.1, 0.9, 0.2, 0.9, 0.3, 0.8, 0.8], "partly"),  # 57 %, and very unsure
        ("equals", [0.3] * 7, "not reproduced"),
        ("at least", [0.9] * 7, "reproduced"),
        ("at least", [0.47] * 7, "reproduced"),
        ("at least", [0.4] * 7, "not reproduced"),
    ],
)
def test_a_published_figure_is_met_within_its_margin(relation, recalls, expected):
    """50 %, 3 points of margin."""
    assert verdict(figure(relation=relation), line("ours", recalls)) == expected


def test_seeds_are_a_spread_of_their_own():
    """Three trainings: their mean is ours, the interval is that of the first seed's regions; a newer line replaces."""
    lines = [line("ours", [0.9] * 7, seed=2)]
    lines += [line("ours", [recall + shift for recall in HARD], seed=seed) for seed, shift in enumerate((0, 0.1, 0.2))]
    found = claims.examine(figure(), lines)["real"]
    assert found.seeds == pytest.approx({0: 50, 1: 60, 2: 70})
    assert found.ours == pytest.approx(60)
    assert found.difference == pytest.approx(10)
    assert 0.5 in found.interval
    assert claims.table([figure()], lines)["seeds"].tolist() == ["50.0 to 70.0 (3)"]


def test_of_a_readers_ledger_what_is_not_synthetic_counts(tmp_path):
    """Synthetic lines of other seeds or settings would change what the page shows; real ones are what it waits for."""
    committed = len(claims.evidence())
    path = tmp_path / "ledger.jsonl"
    assert len(claims.evidence(path)) == committed
    for kind in ledger.DATA_KINDS:
        ledger.append(path, line("ours", HARD, data_kind=kind))
    added = claims.evidence(path)[committed:]
    assert [one["data_kind"] for one in added] == ["semi-real", "unverified", "real"]
    assert added[0]["scores.aa"] == pytest.approx(0.5)


def test_what_was_done_needs_the_run_and_what_cannot_be_tested_says_why():
    done = claim(relation="was done", margin=None, against={}, protocol={})
    assert verdict(done) == "not run yet"
    assert verdict(done, line("ours", HARD)) == "reproduced"
    never = claim(relation="untestable")
    assert verdict(never, line("ours", HARD)) == "not testable here"
    assert claims.table([never], [])["verdict"].tolist() == ["not testable here"]
    assert claims.outstanding([never], [])["command, or why none"].tolist() == ["By AA."]


def test_lines_of_the_first_schema_are_synthetic_or_unknown():
    """What was not made by `world` and does not say what it is gives no verdict."""
    old = line("ours", HARD)
    for name in ("data_kind", "data"):
        del old[name]
    assert claims.examine(figure(), [old]) == {}
    assert set(claims.examine(figure(), [old | {"synthetic": True}])) == {"synthetic"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relation": "more"}, "relation"),
        ({"margin": None}, "needs margin"),
        ({"against": {}}, "needs against"),
        ({"relation": "equals"}, "needs reported"),
        ({"verdict": "reproduced"}, "verdict: Extra inputs are not permitted"),
    ],
)
def test_a_claim_that_is_not_whole_is_refused_by_name(changes, message):
    """Nobody can type a verdict into the file."""
    text = yaml.safe_dump({"version": 1, "fixed": "2026-11-22", "claims": [BASE | changes]})
    with pytest.raises(DataError, match=message):
        claims.read_claims(text.replace("'2026-11-22'", "2026-11-22"))
    twice = yaml.safe_dump({"version": 1, "claims": [BASE, BASE]}) + "fixed: 2026-11-22\n"
    with pytest.raises(DataError, match="an id twice"):
        claims.read_claims(twice)


FIELDS = {
    "claim", "made by", "tested as", "reported", "margin, fixed before", "ours", "interval", "seeds", "difference",
    "verdict", "causes", "hardware", "training, hours", "GPU-hours", "peak memory", "code", "lock", "data",
    "checkpoint", "parameters", "command",
}  # fmt: skip


def two_lines(**changes):
    return [line("ours", EASIER, **changes), line("MODIS label", HARD, **changes)]


def test_a_claim_with_lines_has_every_field():
    shown = claims.report(claim(), two_lines())["● real"]
    assert set(shown.index) == FIELDS
    assert shown["verdict"] == "reproduced"
    assert shown["difference"] == "+10.0"
    assert shown["margin, fixed before"] == "0 points"
    assert shown["lock"] == f"{_runtime.lock_digest()[:12]}…"
    assert shown["data"].endswith("evaluation abc…")
    assert shown["checkpoint"] == "not in the line"
    assert "method ours" in shown["parameters"]


def test_a_claim_without_lines_says_what_it_takes():
    shown = claims.report(claim(download="10 GB", hours=3), [])["● real"]
    assert shown["verdict"] == "not run yet: run it; 10 GB; 3.0 h"
    assert shown["command"] == "run it"
    assert set(shown.index) <= FIELDS


def test_other_data_have_a_column_and_no_verdict():
    shown = claims.report(claim(), two_lines(data_kind="synthetic"))
    assert list(shown.columns) == ["○ synthetic", "● real"]
    assert shown.loc["verdict", "○ synthetic"] == "no verdict: other data"
    assert shown.loc["verdict", "● real"].startswith("not run yet")
    assert shown.loc["ours", "● real"] == "–"


def test_the_cost_is_of_the_row_and_of_all_that_was_tried():
    tried = [line("ours", EASIER), line("MODIS label", HARD), line("given up", HARD), line("given up too", HARD)]
    for one in tried:
        one["cost"] = {"train_s": 3600.0, "gpu_hours": 0.5, "peak_memory_mb": 100.0}
    shown = claims.report(claim(), tried)["● real"]
    assert shown["training, hours"] == "2.00 of this row, 4.00 of all lines"
    assert shown["GPU-hours"] == "1.00 of this row, 2.00 of all lines"
    assert shown["peak memory"] == "100 MB"


def test_changed_code_is_named():
    tried = two_lines()
    tried[0]["code"]["commit"] = "0123456789abcdef+changes"
    assert claims.report(claim(), tried).loc["code", "● real"].endswith("commit 0123456789ab… with changes")


def test_every_claim_of_the_book_can_be_reported():
    lines = claims.evidence()
    for one in BOOK_CLAIMS:
        shown = claims.report(one, lines)
        assert shown.loc["claim"].eq(one.sentence).all()
        assert shown.loc["verdict"].ne("–").all()
