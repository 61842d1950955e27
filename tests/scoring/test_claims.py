"""Claims: verdicts come from lines of the data and the protocol that a claim needs, by the rule in the file."""

import numpy as np
import pytest
import yaml

from lcfuse_core import _runtime
from lcfuse_core.errors import DataError
from lcfuse_core.methods.registry import BOUNDS, FUSED, METHODS
from lcfuse_core.scoring import claims, ledger
from lcfuse_core.scoring.scores import summarise

BOOK_CLAIMS = claims.read_claims()

BASE = {
    "id": "better", "source": "yu2020", "at": "abstract", "sentence": "It is.", "means": "By AA.",
    "relation": "more than", "margin": 0, "where": {"parameters.method": "ours"},
    "against": {"parameters.method": "MODIS label"},
    "protocol": {"profile": "full", "split": "test", "parameters.steps": 5000}, "command": "run it",
}  # fmt: skip


def claim(**changes):
    return claims.Claim(**(BASE | changes))


def figure(**changes):
    return claim(**({"relation": "equals", "reported": 50, "margin": 3, "against": {}} | changes))


def counts_of(recalls, n_pixels=1000):
    """Regions with forest alone, of which these proportions are mapped as forest."""
    found = {}
    for number, recall in enumerate(recalls):
        counts = np.zeros((11, 11), int)
        counts[1, 1] = round(recall * n_pixels)
        counts[1, 10] = n_pixels - counts[1, 1]
        found[f"region {number}"] = counts
    return found


def line(method, recalls, *, seed=0, data_kind="real", with_counts=True, data="abc", protocol=(), **more):
    """Return an invented ledger line of a run."""
    counts = counts_of(recalls)
    scores = ledger._plain(summarise(sum(counts.values())), "") | {"counts": counts if with_counts else {}} | more
    entry = ledger.new_entry(
        "evaluation", {"method": method, "steps": 5000}, scores, label_regime="coarse only", profile="full",
        seeds={"world": 0, "training": seed}, synthetic=data_kind == "synthetic", data_kind=data_kind, split="test",
        hashes={"evaluation": data},
    )  # fmt: skip
    return ledger.flatten(entry) | dict(protocol)


def verdict(one, *lines):
    return claims.verdict(one, claims.examine(one, lines))


HARD = [0.2, 0.5, 0.8, 0.4, 0.6, 0.7, 0.3]
EASIER = [recall + 0.1 for recall in HARD]


def two_lines(**changes):
    return [line("ours", EASIER, **changes), line("MODIS label", HARD, **changes)]


def test_the_book_holds_the_claims_of_the_paper_and_the_published_figures():
    assert sum(one.source == "yu2020" for one in BOOK_CLAIMS) == 6
    assert {one.reported for one in BOOK_CLAIMS} >= {46.45, 43.34, 29.82, 57.49, 61.42, 52.3, None}
    assert all(one.reported is None for one in BOOK_CLAIMS if one.source == "yu2020"), "it reports no number"
    assert all(one.needs == "real" for one in BOOK_CLAIMS)


def test_claims_name_registered_methods_and_their_commands_run_them():
    for one in BOOK_CLAIMS:
        named = [fields["parameters.method"] for fields in (one.where, one.against) if fields]
        assert set(named) <= {*METHODS, *BOUNDS}
        if "compare" in one.command:
            assert all(f'"{name}"' in one.command for name in named), one.id
            assert "--profile full" in one.command
    ensemble = next(one for one in BOOK_CLAIMS if one.id == "ensemble")
    assert ensemble.against["parameters.method"].partition(",")[0] in FUSED


def without_counts(entry):
    """Return a line without the counts, on which the time for an interval is spent."""
    return {name: value for name, value in entry.items() if ".counts." not in name}


SCORED = [one for one in BOOK_CLAIMS if one.relation != "untestable"]
DEPARTURES = {
    "profile": "colab", "split": "validation", "scores.n_patches": 986, "parameters.steps": 40,
    "parameters.crop": 64, "parameters.batch": 16,
}  # fmt: skip


def book_lines(one, recall, **changes):
    """Lines that fit a claim of the book and its protocol, with *changes*; the other method has a recall of 0.5."""
    part, _, _ = one.score.rpartition(".")
    found = []
    for where, right in ((one.where, recall), (one.against, 0.5)):
        counts = counts_of(np.full(7, right))
        own = {"aa": summarise(sum(counts.values())).aa, "counts": counts}
        entry = line("", np.full(7, right), **({part: own} if part else {}))
        found += [entry | {"scores.miou_9": right} | one.protocol | where | changes] if where else []
    return found


@pytest.mark.parametrize("one", SCORED, ids=lambda one: one.id)
def test_a_run_under_another_protocol_decides_nothing_in_either_direction(one):
    """Far above and far below: decided by a run that follows the protocol, by no other, and by no other data."""
    assert one.protocol["scores.n_patches"] == 5128
    assert one.protocol.keys() == DEPARTURES.keys()
    expected = {0.1: "not reproduced", 0.9: "reproduced" if one.relation != "equals" else "not reproduced"}
    for recall, decided in expected.items():
        decided = "reproduced" if one.relation == "was done" else decided
        right = "under another protocol" if one.differs else decided
        assert verdict(one, *book_lines(one, recall)) == right
        for name, value in DEPARTURES.items():
            lines = [without_counts(own) for own in book_lines(one, recall, **{name: value})]
            assert verdict(one, *lines) == "under another protocol", name
            stated = claims.examine(one, lines)["real"].departures
            assert stated == (f"{name.rpartition('.')[2]} {value} instead of {one.protocol[name]}",)
        assert verdict(one, *book_lines(one, recall), *lines) == right, "a later short run hides the complete one"
        unstated = [{key: value for key, value in own.items() if key != "split"} for own in book_lines(one, recall)]
        assert verdict(one, *unstated) == "under another protocol"
        assert verdict(one, *book_lines(one, recall, data_kind="unverified")) == "not run yet"


def test_lines_under_another_protocol_are_shown_with_what_differs():
    short = {"parameters.steps": 40, "split": "validation"}
    lines = two_lines(protocol=short)
    assert claims.table([claim()], lines)["difference"].tolist() == ["+10.0"]
    row = claims.outstanding([claim()], lines).loc["better"]
    assert row.iloc[0] == "under another protocol"
    assert row.iloc[1] == "split validation instead of test; steps 40 instead of 5000"
    assert claims.report(claim(), lines).loc["other protocol", "● real"] == row.iloc[1]
    one_short = [*two_lines()[:1], two_lines(protocol=short)[1] | {"split": "test"}]
    assert verdict(claim(), *one_short) == "under another protocol", "one of two lines departs"


def test_without_a_real_run_nothing_is_claimed_of_real_regions():
    """The committed ledger is synthetic: every claim is still to be run, with its command and download."""
    entries = list(ledger.read_entries(_runtime.SHIPPED / "seeds.jsonl").values())
    table = claims.table(BOOK_CLAIMS, entries)
    real = table[table["data"] == claims.MARKS["real"]]
    assert len(real) == len(BOOK_CLAIMS)
    assert real["verdict"].isin(["not run yet", "not testable here"]).all()
    todo = claims.outstanding(BOOK_CLAIMS, entries)
    assert sorted(", ".join(todo.index).split(", ")) == sorted(one.id for one in BOOK_CLAIMS)
    commands = todo.loc[todo["verdict"] == "not run yet", "command, or why none"]
    assert commands.str.match(r"python -m lcfuse_core (run \w+|compare) --profile full ").all()
    others = table.drop(real.index)
    assert (others["data"] == claims.MARKS["synthetic"]).all()
    assert (others["verdict"] == "no verdict: other data").all()
    shown = others.loc[others["reported"] != "not reported", "difference"]
    assert (shown == "–").all(), "a figure of real regions was compared with the sample"
    evidence = claims.evidence()
    for one in BOOK_CLAIMS:
        shown = claims.report(one, evidence)
        assert shown.loc["claim"].eq(one.sentence).all()
        assert shown.loc["verdict"].ne("–").all()


def test_a_line_of_a_real_run_turns_a_claim_into_a_result():
    """The same claim before and after two lines of real data."""
    lines = [line("ours", HARD, data_kind="synthetic"), line("MODIS label", EASIER, data_kind="synthetic")]
    before = claims.table([claim()], lines)
    assert before["verdict"].tolist() == ["no verdict: other data", "not run yet"]
    assert claims.outstanding([claim()], lines).loc["better"].tolist() == ["not run yet", "run it", "none"]
    lines += two_lines()
    after = claims.table([claim()], lines)
    assert after["data"].tolist() == ["○ synthetic", "● real"]
    assert after["verdict"].tolist() == ["no verdict: other data", "reproduced"]
    assert after["difference"].tolist() == ["-10.0", "+10.0"]
    assert after["interval"].tolist() == ["-10.0 to -10.0", "10.0 to 10.0"]
    assert claims.outstanding([claim()], lines).empty


MIXED = [0.9, 0.45, 0.75, 0.35, 0.65, 0.75, 0.35]  # better by 10 points on average, by 60 in one region


@pytest.mark.parametrize(
    ("recalls", "margin", "with_counts", "expected"),
    [
        (MIXED, 0, True, "inconclusive"),
        (EASIER, 0, True, "reproduced"),
        (EASIER, 20, True, "not reproduced"),
        ([recall - 0.1 for recall in HARD], 0, True, "not reproduced"),
        (EASIER, 0, False, "inconclusive"),
        (EASIER, 20, False, "not reproduced"),
    ],
)
def test_a_difference_must_exceed_the_margin_with_its_whole_interval(recalls, margin, with_counts, expected):
    """Without counts there is no interval, and a difference is inconclusive at best."""
    lines = [line("ours", recalls, with_counts=with_counts), line("MODIS label", HARD, with_counts=with_counts)]
    assert verdict(claim(margin=margin), *lines) == expected


def test_the_interval_is_that_of_the_first_seed_whose_lines_have_counts():
    """Old lines without counts remain in the mean; one newer pair with counts is enough for an interval."""
    lines = [one for seed in (0, 1) for one in two_lines(seed=seed, with_counts=seed == 1)]
    found = claims.examine(claim(), lines)["real"]
    assert sorted(found.seeds) == [(0, 0), (0, 1)]
    assert found.interval.value == pytest.approx(0.1)
    assert verdict(claim(), *lines) == "reproduced"


@pytest.mark.parametrize("score", ["oa", "miou_8", "miou_9"])
def test_other_scores_have_intervals_too(score):
    """Forest alone, so that OA is AA and mIoU-8 too; over nine classes it is a ninth of that."""
    found = claims.examine(figure(score=score), [line("ours", HARD)])["real"]
    assert 100 * found.interval.value == pytest.approx(found.ours)
    assert found.ours == pytest.approx(50 / 9 if score == "miou_9" else 50)


def test_a_score_near_small_objects_is_tested_by_its_own_counts():
    """Better on the whole, worse near small objects: the claim of ten metres is about the latter."""
    lines = []
    for method, whole, part in (("ours", EASIER, HARD), ("MODIS label", HARD, EASIER)):
        counts = counts_of(part)
        lines.append(line(method, whole, small_objects={"aa": summarise(sum(counts.values())).aa, "counts": counts}))
    assert verdict(claim(), *lines) == "reproduced"
    found = claims.examine(claim(score="small_objects.aa"), lines)["real"]
    assert (found.difference, found.interval.value) == pytest.approx((-10, -0.1))
    assert verdict(claim(score="small_objects.aa"), *lines) == "not reproduced"
    assert verdict(claim(score="small_objects.aa"), *two_lines()) == "not run yet"


@pytest.mark.parametrize(
    "change",
    [{"hashes.evaluation": "other"}, {"seeds.training": 1}, {"split": "validation"}, {"scores.n_pixels": 6000}],
)
def test_only_maps_of_the_same_pixels_are_compared(change):
    ours, label = two_lines()
    assert verdict(claim(), ours | change, label) == "not run yet"


@pytest.mark.parametrize("kind", ["semi-real", "unverified"])
def test_other_data_give_no_verdict_and_have_their_own_row(kind):
    table = claims.table([claim()], two_lines(data_kind=kind))
    assert table["data"].tolist() == [claims.MARKS[kind], "● real"]
    assert table["verdict"].tolist() == ["no verdict: other data", "not run yet"]


@pytest.mark.parametrize(
    ("relation", "recalls", "expected"),
    [
        ("equals", [0.5] * 7, "reproduced"),
        ("equals", [0.53] * 7, "reproduced"),
        ("equals", [0.55] * 7, "not reproduced"),
        ("equals", [0.1, 0.9, 0.2, 0.9, 0.3, 0.8, 0.8], "inconclusive"),  # 57 %, with a wide interval
        ("equals", [0.3] * 7, "not reproduced"),
        ("at least", [0.9] * 7, "reproduced"),
        ("at least", [0.47] * 7, "reproduced"),
        ("at least", [0.4] * 7, "not reproduced"),
    ],
)
def test_a_published_figure_is_met_within_its_margin(relation, recalls, expected):
    """50 %, 3 points of margin; a claim whose command differs from the published experiment is never decided."""
    assert verdict(figure(relation=relation), line("ours", recalls)) == expected
    assert verdict(figure(relation=relation, differs="a net"), line("ours", recalls)) == "under another protocol"


def test_the_mean_is_over_seeds_and_a_newer_line_replaces_an_older_one():
    lines = [line("ours", [0.9] * 7, seed=2)]
    lines += [line("ours", [recall + shift for recall in HARD], seed=seed) for seed, shift in enumerate((0, 0.1, 0.2))]
    found = claims.examine(figure(), lines)["real"]
    assert found.seeds == pytest.approx({(0, 0): 50, (0, 1): 60, (0, 2): 70})
    assert (found.ours, found.difference) == pytest.approx((60, 10))
    assert 0.5 in found.interval
    assert claims.table([figure()], lines)["seeds"].tolist() == ["50.0 to 70.0 (3)"]


def test_the_evidence_is_committed_lines_and_own_lines_that_are_not_synthetic(tmp_path, monkeypatch):
    """A newer committed file replaces lines of the older one; own synthetic lines would change what the page shows."""
    monkeypatch.setattr(claims, "SHIPPED", tmp_path)
    ledger.append(tmp_path / "seeds.jsonl", line("ours", HARD, with_counts=False))
    assert len(claims.evidence()) == len(claims.evidence(tmp_path / "none.jsonl")) == 1
    ledger.append(tmp_path / "methods.jsonl", line("ours", EASIER))
    found = claims.examine(figure(), claims.evidence())["real"]
    assert found.ours == pytest.approx(60)
    assert found.interval is not None
    for kind in ledger.DATA_KINDS:
        own = line("ours", HARD, data_kind=kind) | {"synthetic": kind == "synthetic"}
        ledger.append(tmp_path / "own.jsonl", own)
    added = claims.evidence(tmp_path / "own.jsonl")[2:]
    assert [one["data_kind"] for one in added] == ["semi-real", "unverified", "adopted", "real", "place"]


def place_lines(method, recalls, **more):
    """Return one line per recall: each is of a place of its own, with one region."""
    return [
        line(method, [recall], data_kind="place", data=f"place {number}", **more)
        | {f"scores.counts.P{number}": counts_of([recall])["region 0"].tolist(), "scores.n_patches": 4}
        for number, recall in enumerate(recalls)
    ]


def without_region(lines):
    return [{name: value for name, value in one.items() if name != "scores.counts.region 0"} for one in lines]


def test_lines_of_real_places_are_pooled_and_each_place_is_a_region():
    ours, theirs = (without_region(place_lines(name, recalls)) for name, recalls in (("ours", EASIER), ("x", HARD)))
    pooled = claims._pooled_places([*ours, *theirs, ours[0]])  # of two lines of a place, the newer counts
    assert [one["parameters.method"] for one in pooled] == ["ours", "x"]
    assert {one["scores.n_places"] for one in pooled} == {7}
    assert {one["scores.n_patches"] for one in pooled} == {28}
    assert pooled[0]["scores.aa"] == pytest.approx(np.mean(EASIER))
    assert pooled[0]["hashes.evaluation"] == pooled[1]["hashes.evaluation"]
    taken = [one | {"parameters.steps_taken": number} for number, one in enumerate(ours)]
    (whole,) = claims._pooled_places(taken)
    assert (whole["scores.n_places"], whole["parameters.steps"]) == (7, 5000)
    assert "parameters.steps_taken" not in whole, "the places differ in it"
    apart = {"kind": "other chapter", "data.places": "a list", "profile": "smoke", "parameters.steps": 3}
    several = claims._pooled_places([*ours, *(ours[0] | {name: value} for name, value in apart.items())])
    assert [one["scores.n_places"] for one in several] == [7, 1, 1, 1, 1]
    fewer = claims._pooled_places([*ours[1:], *theirs])
    assert fewer[0]["hashes.evaluation"] != fewer[1]["hashes.evaluation"], "other places are not compared"
    assert claims._pooled_places([]) == []


def foreign(method):
    """Return a line of a place that is in no list."""
    (one,) = without_region([line(method, [0.0], data_kind="place")])
    return one | {"scores.counts.Mine": counts_of([0.0])["region 0"].tolist()}


@pytest.mark.parametrize(("shift", "expected"), [(0.1, "reproduced"), (-0.1, "not reproduced")])
def test_claims_on_real_places_have_a_verdict_of_their_own(shift, expected):
    """From the ledger of runs on all 26 places of the list; fewer or other places or steps are another protocol."""
    variants = claims.of_places(BOOK_CLAIMS)
    assert [one.id for one in variants] == ["better-than-modis, places", "ensemble, places"]
    recalls = np.random.default_rng(0).uniform(0.3, 0.7, 26)
    methods = {one.where["parameters.method"]: recalls + shift for one in variants}
    methods |= {one.against["parameters.method"]: recalls for one in variants}
    protocol = variants[0].protocol
    entries = [one | protocol for name, own in methods.items() for one in without_region(place_lines(name, own))]
    elsewhere = {name: value for name, value in protocol.items() if name != "data.places"}
    entries += [foreign(name) | elsewhere for name in methods]  # a place of somebody's own, in no list
    lines = claims._pooled_places(entries)
    for one in variants:
        assert claims.verdict(one, claims.examine(one, lines)) == expected
        assert claims.verdict(one, claims.examine(one, lines[:0])) == "not run yet"
        for other in ({"scores.n_places": 3}, {"data.places": "mine.yaml 0"}, {"parameters.steps": 150}):
            found = claims.examine(one, [line | other for line in lines])
            assert claims.verdict(one, found) == "under another protocol"
    original = [one for one in BOOK_CLAIMS if one.on_places]
    assert [claims.verdict(one, claims.examine(one, lines)) for one in original] == ["not run yet"] * 2


def test_what_cannot_be_tested_has_its_reason():
    never = claim(relation="untestable")
    assert verdict(never, *two_lines()) == "not testable here"
    assert claims.table([never], [])["verdict"].tolist() == ["not testable here"]
    assert claims.outstanding([never], [])["command, or why none"].tolist() == ["By AA."]


def test_lines_of_the_first_schema_are_synthetic_or_unknown():
    """What was not made by `world` and does not state its kind gives no verdict."""
    old = {name: value for name, value in line("ours", HARD).items() if name != "data_kind"}
    assert claims.examine(figure(), [old]) == {}
    assert set(claims.examine(figure(), [old | {"synthetic": True}])) == {"synthetic"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relation": "more"}, "relation"),
        ({"margin": None}, "needs margin"),
        *(({"margin": value}, "margin: Input should be") for value in (float("nan"), float("inf"), -1, True, "1")),
        ({"reported": 400}, "reported: Input should be"),
        ({"against": {}}, "needs against"),
        ({"relation": "equals"}, "needs reported"),
        ({"protocol": {"split": "test"}}, r"needs protocol parameters\.steps"),
        *(({"score": name}, f"score '{name}' is none of aa, oa, ") for name in ("AA", "recall.Savanna", "near.aa", "")),
        ({"verdict": "reproduced"}, "verdict: Extra inputs are not permitted"),
    ],
)
def test_an_incomplete_claim_is_refused_by_name(changes, message):
    """A verdict cannot be typed into the file."""
    with pytest.raises(DataError, match=message):
        claims.read_claims(yaml.safe_dump({"version": 1, "fixed": "2026-11-22", "claims": [BASE | changes]}))


def test_a_file_of_another_form_is_refused():
    """Files that are no claims at all are among the doors of test_fuzz.py."""
    whole = {"version": 1, "fixed": "2026-11-22", "claims": [BASE, BASE]}
    with pytest.raises(DataError, match="an id twice"):
        claims.read_claims(yaml.safe_dump(whole))
    with pytest.raises(DataError, match=r"claims\.yaml( line \d+)?: found "):
        claims.read_claims("version: 1\nclaims: []\nfixed: 2026-99-99")


def test_a_report_has_every_field_and_short_hashes():
    """Also a column for other data, without a verdict, and one for what the claim needs, without a line."""
    own = two_lines()
    own[0] |= {"code.commit": "0123456789ab" * 3 + "+changes", "cost.peak_memory_mb": 100.0}
    shown = claims.report(claim(), own)["● real"]
    assert (shown["verdict"], shown["difference"], shown["reported"]) == ("reproduced", "+10.0", "not reported")
    assert shown["commit"] == "0123456789ab…+changes"
    assert (shown["peak memory, MB"], shown["checkpoint"], shown["evaluation data"]) == ("100.0", "–", "abc")
    assert "method ours" in shown["parameters"]
    other = claims.report(claim(), two_lines(data_kind="synthetic"))
    assert list(other.columns) == ["○ synthetic", "● real"]
    assert other.loc["verdict"].tolist() == ["no verdict: other data", "not run yet"]
    assert other.loc["ours", "● real"] == "–"
    assert set(other.index) == set(shown.index)
