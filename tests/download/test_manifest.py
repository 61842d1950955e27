"""The manifest: what it holds, and that a mistake in it is found by field."""

import json
import re
from pathlib import Path

import pytest

from lcfuse_core import _runtime
from lcfuse_core.book import settings
from lcfuse_core.download import manifest
from lcfuse_core.errors import DataError, MissingDataError, ParameterError

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "data_manifest.yaml"
BOOK = manifest.read()
ARCHIVES = [item for item in BOOK.items if item.dataset == "sen12ms" and item.unpack]
PHASES = [item for item in BOOK.items if re.fullmatch(r"dfc2020-(validation|test)-\w+", item.id)]

SMALL = """\
schema: 1
datasets:
  toys:
    title: toys
    doi: 10.1/toys
    page: https://example.org/toys
    citation: Nobody (2026)
    licence: {name: CC0, where: here, read_on: 2026-11-22}
    chapters: []
    kinds:
      s1: {bytes: 10, at_most: 20, ratio: 50}
    sources:
      - kind: https
        url: https://example.org/{file}
      - kind: by_hand
        page: https://example.org/toys
        do: Take {file}.
items:
  - id: one
    dataset: toys
    what: a toy
    file: one.zip
    kind: s1
    size: 100
    checksums: {md5: 0123456789abcdef0123456789abcdef}
    unpack: {into: toys, members: "x_{scene}_p{patch}.tif", place: "x_{scene}", files: 7}
  - id: two
    dataset: toys
    what: another
    file: two.txt
    size: unknown
    checksums: unknown
subsets:
  colab:
    what: toys
    items:
      - {item: one, scenes: {"3": 2}}
      - {item: two}
"""


@pytest.fixture
def parse(tmp_path):
    """Write a text as `m.yaml` and read it."""

    def read(text):
        (tmp_path / "m.yaml").write_text(text, encoding="utf-8")
        return manifest.read(tmp_path / "m.yaml")

    return read


# What it holds -----------------------------------------------------------------------------------


def test_the_package_holds_the_file_at_the_top():
    """One file, seen from both places."""
    assert (_runtime.SHIPPED / "data_manifest.yaml").resolve() == FILE
    assert manifest.read(FILE) == BOOK


def test_every_archive_and_list_is_there():
    """Twelve archives and two lists of SEN12MS, eight phase archives of DFC2020."""
    seasons = ("ROIs1158_spring", "ROIs1868_summer", "ROIs1970_fall", "ROIs2017_winter")
    names = {f"{season}_{kind}.tar.gz" for season in seasons for kind in ("lc", "s1", "s2")}
    assert {item.file for item in ARCHIVES} == names
    lists = {item.file for item in BOOK.items if item.dataset == "sen12ms"} - names
    assert lists == {"train_list.txt", "test_list.txt"}
    kinds = ("s1", "s2", "lc", "dfc")
    assert {item.file for item in PHASES} == {f"{kind}_{part}.zip" for kind in kinds for part in ("validation", "0")}


def test_checksums_and_sources_are_those_that_are_published():
    """Each file of SEN12MS has its MD5; of the phase archives nothing is published, and a guess would refuse them."""
    sums = [item.checksums["md5"] for item in BOOK.items if item.dataset == "sen12ms"]
    assert len(set(sums)) == 14
    assert {(item.checksums, item.size) for item in PHASES} == {("unknown", "unknown")}
    single = {item.id for item in BOOK.items if item.file and len(BOOK.sources(item)) < 2}
    assert single == {"dfc2020-bundle", "dfc2020-copernicus-bench"}
    pairs = [(item, source) for item in BOOK.items for source in BOOK.sources(item)]
    for item, source in pairs:
        text = json.dumps(source.model_dump())
        assert "{" not in text[1:-1]
        assert item.file is None or source.kind == "by_hand" or item.file in text
    assert {source.password for _, source in pairs if source.kind == "ftp"} == {"m1474000"}


@pytest.mark.parametrize(("dataset", "parameter"), [("sen12ms", "train_root"), ("dfc2020", "data_root")])
def test_the_chapters_that_use_it_are_those_that_can_be_pointed_at_it(dataset, parameter):
    users = [chapter for chapter, names in settings.CHAPTERS.items() if parameter in names]
    assert sorted(BOOK.datasets[dataset].chapters) == sorted(users)
    assert sorted(BOOK.datasets["sample"].chapters) == sorted(settings.CHAPTERS)


def test_the_profiles_are_those_of_the_book():
    assert tuple(BOOK.subsets) == _runtime.PROFILES


def test_the_profiles_read_where_the_manifest_unpacks():
    """`data_root: data/dfc2020` and `into: dfc2020` under the root `data` are one place."""
    for profile in ("colab", "full"):
        values = _runtime.read_profile(profile)
        assert values["train_root"] == f"data/{ARCHIVES[0].unpack.into}"
        assert values["data_root"] == f"data/{PHASES[0].unpack.into}"


def test_members_go_where_the_real_layout_has_them():
    item = BOOK.item("sen12ms-summer-s2")
    name = "ROIs1868_summer_s2_104_p30.tif"
    assert item.unpack.destination(f"any/where/{name}") == f"ROIs1868_summer/s2_104/{name}"
    assert item.unpack.destination(name, frozenset({"15"})) is None
    for other in ("ROIs1868_summer_s1_104_p30.tif", "ROIs1158_spring_s2_104_p30.tif", name + ".txt", f"x{name}"):
        assert item.unpack.destination(other) is None
    test = BOOK.item("dfc2020-test-dfc")
    assert test.unpack.destination("ROIs0000_test_dfc_0_p7.tif") == "dfc_0/ROIs0000_test_dfc_0_p7.tif"
    name = "ROIs0000_autumn_s2_CapeTown_p7.tif"
    assert BOOK.item("dfc2020-bundle").unpack.destination(name) == f"ROIs0000_autumn/s2_CapeTown/{name}"


# How large ---------------------------------------------------------------------------------------


def test_the_size_of_colab_is_that_of_its_scenes_and_an_estimate_of_the_archives():
    """205 + 663 + 599 patches of three files; the season archives they are in have no published size."""
    chosen = BOOK.subset("colab").items
    disk, down = manifest.disk_size(BOOK, chosen), manifest.download_size(BOOK, chosen)
    assert disk.exact == (205 + 663 + 599) * (525_172 + 1_706_432 + 262_788)
    assert disk.about == (986 + 5128) * (1_050_000 + 1_710_000 + 263_000 + 66_000) + 580_000
    assert down.about == 948_000_000 + 633_000_000 + 6_000_000 + 4_960_000_000 + 3_750_000_000 + 36_000_000 + 580_000
    season = round(180_662 * 525_172 / 4) + round(180_662 * 1_706_432 / 4) + round(180_662 * 262_788 / 4)
    assert (down.exact, down.estimate) == (0, season + (986 + 5128) * 263_000)
    assert (disk.unknown, down.unknown) == ((), ())


def test_the_size_of_full_is_that_of_all_patches():
    """Of single seasons the number of patches is not published, of all of them it is."""
    chosen = BOOK.subset("full").items
    disk = manifest.disk_size(BOOK, chosen)
    assert disk.exact == 180_662 * (525_172 + 1_706_432 + 262_788)
    part = manifest.disk_size(BOOK, chosen[1:])
    assert part.exact == 180_662 * (525_172 + 1_706_432)
    assert part.estimate == 3 * round(180_662 * 262_788 / 4)
    low, high = BOOK.datasets["sen12ms"].about_bytes
    assert low < manifest.download_size(BOOK, chosen[:12]).estimate < high, "the estimates add up to the known total"


def test_sizes_of_a_small_manifest_add_up(parse):
    book = parse(SMALL)
    chosen = book.subset("colab").items
    assert manifest.download_size(book, chosen) == manifest.Sizes(100, unknown=("two",))
    assert manifest.disk_size(book, chosen) == manifest.Sizes(2 * 10, unknown=("two",))
    assert manifest.disk_size(book, [manifest.Choice(item="one")]) == manifest.Sizes(7 * 10)
    sizes = manifest.Sizes(6_000_000, 7_000_000, 8_000_000, ("two",))
    expected = "0.01 GB + about 0.01 GB + an estimated 0.01 GB of unpublished sizes + unknown: two"
    assert str(sizes) == expected


# Mistakes ----------------------------------------------------------------------------------------

MISTAKES = [
    ("schema: 1", "schema: 2", "schema", "found 2"),
    ("size: 100", "size: big", "items.0.size", "found 'big'"),
    ("size: 100", "size: -1", "items.0.size", "greater than or equal to 0"),
    ("md5: 0123456789abcdef0123456789abcdef", "md5: 01ab", "items.0.checksums", "32 digits"),
    ("md5: 0123456789abcdef0123456789abcdef", "crc: '0123'", "items.0.checksums", "md5"),
    ("    file: one.zip", "    fiel: one.zip", "items.0.file", "found nothing"),
    ("file: two.txt", "file: ../two.txt", "items.1.file", "plain relative path"),
    ("into: toys", "into: /toys", "items.0.unpack.into", "plain relative path"),
    ("url: https", "url: file", "datasets.toys.sources.0.url", "begins with https:// or ftp://"),
    ("url: https", "url: http", "datasets.toys.sources.0.url", "begins with https:// or ftp://"),
    ("kind: by_hand", "kind: by_foot", "datasets.toys.sources.1", "by_hand"),
    ("read_on: 2026-11-22", "read_on: soon", "datasets.toys.licence.read_on", "found 'soon'"),
    ("read_on: 2026-11-22", "read_on: 2026-13-40", "the file", "month must be in 1..12"),
    ("- id: two", "- id: one", "items.1.id", "an id of its own"),
    ("file: two.txt", "file: one.zip", "items.1.file", "a file name of its own"),
    ("    kind: s1", "    kind: s9", "items.0.kind", "one of s1"),
    ("{item: two}", "{item: three}", "subsets.colab.items.1.item", "the id of an item"),
    ("  colab:", "  huge:", "subsets.huge", "found 'huge'"),
    ("    what: another", "    what: another\n    what: twice", "the file", "'what' a second time"),
    ("chapters: []", "chapters: &a [&b x, [*b]]", "the file", "an alias inside an anchor"),
    ("    what: another", "    what: yes", "the file", "'yes' without quotes, which readers take"),
    ("size: 100", "size: 0100", "the file", "'0100' without quotes"),
    ("    what: another", "    [what]: another", "the file", "unhashable"),
    ("    what: another", "    what: [another", "the file", "YAML that can be read"),
    ("    what: another", "    what: another\n    extra: 1", "items.1.extra", "not permitted"),
]


@pytest.mark.parametrize(("old", "new", "field", "said"), MISTAKES, ids=[f"{m[2]} {m[3]}" for m in MISTAKES])
def test_a_mistake_is_named_by_its_field(old, new, field, said, parse):
    """What is not YAML is named by line."""
    assert SMALL.count(old) == 1
    with pytest.raises(DataError) as caught:
        parse(SMALL.replace(old, new))
    message = str(caught.value)
    assert message.startswith("m.yaml line " if field == "the file" else f"m.yaml: {field}")
    assert said in message


def test_an_item_of_an_unknown_data_set_is_named(parse):
    text = SMALL.replace("    dataset: toys\n    what: another", "    dataset: gone\n    what: another")
    with pytest.raises(DataError, match=r"items\.1\.dataset \(item two\): found 'gone', expected one of toys"):
        parse(text)


def test_a_missing_manifest_an_unknown_item_and_profile_are_named(tmp_path):
    with pytest.raises(MissingDataError, match="no such file"):
        manifest.read(tmp_path / "none.yaml")
    with pytest.raises(ParameterError, match="one of sen12ms-spring-lc"):
        BOOK.item("sen12ms-autumn-lc")
    with pytest.raises(ParameterError, match="one of smoke, colab, full"):
        BOOK.subset("huge")


def test_a_byte_order_mark_is_no_fault(parse):
    assert parse("\ufeff" + SMALL) == parse(SMALL)
