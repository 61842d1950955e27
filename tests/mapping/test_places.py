"""Places: what is written from a catalogue with known content, and every way in which a service fails."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from places import write
from stac_server import ASSETS, add_item, add_radar, labelled_scene, serving

from lcfuse_core.data import cells, legends, patches
from lcfuse_core.data.bands import B10, channels_of
from lcfuse_core.errors import DataError, FetchError, MissingDataError, ParameterError
from lcfuse_core.mapping import place_layers, places, stac
from lcfuse_core.mapping.places import (
    SERVICES,
    Request,
    download_bytes,
    fetch_place,
    read_places,
    read_services,
    sample_place,
)  # fmt: skip
from lcfuse_core.scoring import identity

OLD = {"s2:processing_baseline": "02.14"}
NEW = {"s2:processing_baseline": "05.09"}
CORRECTED = NEW | {"earthsearch:boa_offset_applied": True}
SHAPE = (320, 320)  # of the scene; a place of 1.28 km is its rows and columns 96 to 223


@pytest.fixture(scope="module", autouse=True)
def short_waits():
    """Between the tries of a request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stac, "_WAITS_S", (0.02, 0.02, 0.02))
        patch.setitem(stac._GDAL, "GDAL_HTTP_RETRY_DELAY", "0.02")
        yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """The scene that all servers of this file have, and its labels as files."""
    folder = tmp_path_factory.mktemp("scene")
    return labelled_scene(folder), folder / "labels"


@contextmanager
def labels_served(scene, folder):
    """A server with the labels alone, and the products that other servers of this file have made."""
    shutil.copytree(scene[1], folder / "files")
    with serving(folder / "files", scene[1].with_name("products")) as running:
        yield running


def place_of(scene, **changes):
    """The request of a place in the middle of the scene."""
    return replace(Request(scene[0].lon, scene[0].lat, 1.28, name="Here", dates=3), **changes)


@pytest.fixture
def empty_server(scene, tmp_path):
    """A server without images."""
    with labels_served(scene, tmp_path) as running:
        yield running


@pytest.fixture
def server(scene, empty_server):
    """The same with one clear product of Sentinel-2."""
    add_item(empty_server, scene[0], "a", "2021-06-05", properties=OLD)
    return empty_server


@pytest.fixture
def fetch(scene, empty_server, tmp_path):
    """Fetch the place in the middle of the scene from the server; keywords change the request or the services."""

    def do(*, signed=False, sentinel1=True, l1c=False, **changes):
        services = empty_server.services(tmp_path / "services.yaml", signed=signed, sentinel1=sentinel1, l1c=l1c)
        return fetch_place(place_of(scene, **changes), tmp_path / "out", services=services)

    return do


@pytest.fixture(scope="module")
def plain(scene, tmp_path_factory):
    """The place by one clear product of each sensor; only read."""
    folder = tmp_path_factory.mktemp("plain")
    with labels_served(scene, folder) as server:
        add_item(server, scene[0], "a", "2021-06-05", properties=OLD)
        add_radar(server, scene[0], "r", "2021-07-01")
        return fetch_place(place_of(scene), folder / "out", services=server.services(folder / "services.yaml"))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """The synthetic place; only read."""
    return sample_place(tmp_path_factory.mktemp("synthetic"), seed=3)


def reflectance(folder):
    with rasterio.open(folder / "s2.tif") as file:
        return file.read().astype(int)


def record(folder):
    return json.loads((folder / "place.json").read_text())


# What is written -----------------------------------------------------------------------------------


def test_the_folder_is_a_bundle_of_dfc2020_with_the_values_of_the_scene(scene, plain):
    """Images and reference are resampled by a part of a pixel; each cell has its own label."""
    found, table = scene[0], patches.index(plain)
    assert list(table["layout"]) == ["dfc2020-bundle"]
    (patch,), report = patches.read_many(table)
    assert report.repaired == report.skipped == []
    assert (patch.s2[B10] == 0).all()
    assert (np.delete(patch.s2, B10, 0) > 0).all()
    col, row = (int(part) for part in ~found.transform @ (patch.transform @ (64.5, 64.5)))
    near, middle = np.s_[row - 60 : row + 60, col - 60 : col + 60], np.s_[4:124, 4:124]
    assert (patch.dfc[middle] == found.truth[near]).mean() > 0.99
    for band in (1, 7, 12):
        ours, theirs = patch.s2[band][middle].astype(float), found.s2[band][near].astype(float)
        assert abs(ours.mean() - theirs.mean()) < 10
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9
    assert abs(patch.s1[0][middle].mean() - found.s1[0][near].mean()) < 1
    ours, theirs = (
        set(zip(keys[ids].ravel(), label.ravel(), strict=True))  # the pairs of cell and label
        for label, (ids, keys) in (
            (patch.lc[0], cells.cell_ids(patch.transform, patch.crs, patch.lc[0].shape)),
            (found.igbp, cells.cell_ids(found.transform, found.crs, found.igbp.shape)),
        )
    )
    assert ours <= theirs


@pytest.mark.parametrize("wrong", [None, "old", "new", "corrected"])
def test_mixed_baselines_make_one_composite(scene, empty_server, fetch, plain, wrong):
    """Each product covers a third of one date; any of them read as another kind shows in its third."""
    kinds = {"old": (OLD, 0), "new": (NEW, 1000), "corrected": (CORRECTED, 0)}
    if wrong:  # the same values under the properties of another kind: what a wrong rule would see
        kinds[wrong] = ({"old": NEW, "new": OLD, "corrected": NEW}[wrong], kinds[wrong][1])
    for number, (name, (properties, stored)) in enumerate(kinds.items()):
        columns = slice(*[(0, 139), (139, 181), (181, 320)][number])
        add_item(empty_server, scene[0], name, "2021-06-05", properties=properties, stored=stored, columns=columns)
    worst = np.percentile(np.abs(reflectance(fetch(sentinel1=False)) - reflectance(plain)), 95)
    assert worst < 100 if wrong is None else worst > 400


def test_surface_reflectance_is_read_by_the_readers_of_patches(scene, empty_server, fetch):
    """L2A is dark in B1, where the reader of L1C expects the light of the air."""
    add_item(empty_server, scene[0], "a", "2021-06-05", properties=NEW, stored=1000, surface=True)
    (patch,), report = patches.read_many(patches.index(fetch()))
    assert report.skipped == []
    assert np.median(patch.s2[0]) < 350
    assert (patch.s2[B10] == 0).all()


def test_a_catalogue_of_l1c_has_b10_and_no_scene_classification(scene, empty_server, fetch):
    """All 13 bands; dates of few clouds by the catalogue's figure, of which no pixel is masked."""
    add_item(empty_server, scene[0], "a", "2021-06-05", properties=NEW, stored=1000)
    add_item(empty_server, scene[0], "b", "2021-06-10", properties=NEW | {"eo:cloud_cover": 30.0}, stored=1000)
    for item in empty_server.items:
        item["assets"]["B10"] = item["assets"]["B09"]
        del item["assets"]["SCL"]
    folder = fetch(l1c=True)
    (patch,), _ = patches.read_many(patches.index(folder))
    assert "B10" in channels_of(patch.s2, patch.s1)
    assert (patch.s2[B10] == patch.s2[9]).all()
    assert record(folder)["sentinel2"]["level"] == "L1C"
    assert list(record(folder)["sentinel2"]["dates"]) == ["2021-06-05"]
    empty_server.items.pop(0)
    with pytest.raises(MissingDataError, match="the clearest with 0 % of clear pixels"):
        fetch(l1c=True, name="Cloudy")


def test_offsets_follow_the_item():
    def item(properties, band=None):
        asset = {"href": "x"} if band is None else {"href": "x", "raster:bands": [band]}
        return stac.Item("id", "2021-06-01", {"B02": asset}, properties, "s2")

    assert item(NEW).offset("B02") == -1000
    assert item(OLD).offset("B02") == 0
    assert item(CORRECTED).offset("B02") == 0
    assert item(NEW, {"offset": -0.1, "scale": 0.0001}).offset("B02") == -1000
    assert item(NEW, {"offset": 0, "scale": 0.0001}).offset("B02") == 0
    assert item(CORRECTED, {"offset": -0.1, "scale": 0.0001}).offset("B02") == 0
    assert item({"processing:version": "04.00"}).offset("B02") == -1000
    with pytest.raises(DataError, match="baseline"):
        item({"datetime": "2022-06-01"}).offset("B02")  # the date alone decides nothing
    for text in ("N0204", [], "", None):
        with pytest.raises(DataError, match="baseline"):
            item({"s2:processing_baseline": text}).offset("B02")
    for band in ({"offset": "x", "scale": 1}, "x"):
        with pytest.raises(DataError, match="no numbers"):
            item(NEW, band).offset("B02")
    with pytest.raises(MissingDataError, match="B03"):
        item(NEW).address("B03")


def test_addresses_that_are_not_of_the_web():
    """A catalogue must not make us read a file of this machine."""
    for address in ("/etc/hostname", "file:///etc/hostname", "s3://bucket/x.tif", "/vsizip/x.zip/a", ""):
        with pytest.raises(DataError, match="https://"):
            stac.Item("id", "2021-06-01", {"B05": {"href": address}}, OLD, "s2").address("B05")


def test_the_composite_leaves_out_clouds(scene, empty_server, fetch):
    left = np.broadcast_to(np.arange(320) < 160, SHAPE)
    add_item(empty_server, scene[0], "a", "2021-06-05", properties=OLD, clouds=left)
    add_item(empty_server, scene[0], "b", "2021-06-15", properties=OLD, clouds=~left)
    folder = fetch()
    assert reflectance(folder)[1].max() < 5000
    assert record(folder)["sentinel2"]["unseen_share"] < 0.01
    assert len(record(folder)["sentinel2"]["dates"]) == 2


def test_the_clearest_dates_are_taken(scene, empty_server, fetch):
    for day, share in enumerate((0.7, 0.0, 0.3, 0.05), start=1):
        clouds = np.zeros(SHAPE, bool)
        clouds[: int(96 + 128 * share)] = True
        add_item(empty_server, scene[0], f"d{day}", f"2021-06-0{day}", properties=OLD, clouds=clouds)
    assert list(record(fetch(dates=2))["sentinel2"]["dates"]) == ["2021-06-02", "2021-06-04"]


def test_without_sentinel1_its_channels_are_constant(scene, server, fetch):
    folder = fetch(sentinel1=False)
    (patch,), _ = patches.read_many(patches.index(folder))
    assert [np.unique(band).tolist() for band in patch.s1] == [[value] for value in (-12, -19)]
    assert record(folder)["sentinel1"] is None
    assert not (folder / "s1.tif").exists()
    add_radar(server, scene[0], "r", "2021-07-01")
    server.fault = lambda path, times: (403, {}) if path.endswith(("vv.tif", "vh.tif")) else None
    assert "Sentinel-2 alone" in record(fetch(name="Refused"))["sentinel1_reason"]


# Faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404])
def test_a_refused_file_is_read_once_it_is_there(server, fetch, plain, tmp_path, status):
    """
    In the same process, as a notebook would ask again; GDAL would keep the answer.

    Nothing is left under the final name after the fault, what was read is kept, and a complete place is found.
    """
    server.refused = {"/files/a/B12.tif": status}
    with pytest.raises(FetchError, match=rf"B12.*{status}"):
        fetch(sentinel1=False)
    assert not (tmp_path / "out" / "Here").exists()
    server.refused, before = {}, len(server.requests)
    folder = fetch(sentinel1=False)
    assert (reflectance(folder) == reflectance(plain)).all()
    again = server.requests[before:]
    assert not any(path.endswith(("B01.tif", "SCL.tif", "modis_2021.tif")) for path in again)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [folder.name]
    before = len(server.requests)
    assert fetch(sentinel1=False) == folder
    assert len(server.requests) == before


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_service_is_asked_again(server, fetch, status):
    headers = {"Retry-After": "1"} if status == 429 else {}
    server.fault = lambda path, times: (
        (status, headers) if path in ("/v1/search", "/files/a/B02.tif") and times < 2 else None
    )
    fetch(sentinel1=False)


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], MissingDataError, "no Sentinel-2 image"),
        ([{"clouds": np.ones(SHAPE, bool)}], MissingDataError, "clear"),
        ([{"clouds": np.broadcast_to(np.arange(320) < 160, SHAPE)}], MissingDataError, "clear view"),
        ([{"lacks": "B07"}], MissingDataError, "B07"),
        ([{"properties": {"eo:cloud_cover": 0}}], DataError, "baseline"),
        ([{"columns": slice(0, 112)}], MissingDataError, "clear"),  # an eighth of the place
    ],
)
def test_images_that_do_not_serve(scene, empty_server, fetch, items, error, message):
    for number, item in enumerate(items):
        add_item(empty_server, scene[0], f"i{number}", "2021-06-05", **{"properties": OLD} | item)
    with pytest.raises(error, match=message):
        fetch()


@pytest.mark.parametrize("cut", [1, 1000, 20_000])
def test_a_reset_in_the_middle_of_a_tile_is_repaired(scene, empty_server, fetch, plain, cut):
    """The tile is asked for again as a whole: no half of it is used."""
    add_item(empty_server, scene[0], "b", "2021-06-05", properties=OLD)
    broken = []

    def reset(path, times):
        if path == "/files/b/B03.tif" and times in (2, 3):
            broken.append(path)
            return cut
        return None

    empty_server.fault = reset
    assert (reflectance(fetch(sentinel1=False)) == reflectance(plain)).all()
    assert broken


def test_files_that_moved_are_followed(scene, server, fetch):
    add_item(server, scene[0], "b", "2021-06-05", properties=OLD)
    server.items.pop()
    moved = {"Location": f"{server.url}/files/b/B04.tif"}
    server.fault = lambda path, times: (302, moved) if path == "/files/a/B04.tif" else None
    fetch(sentinel1=False)
    assert server.sent["/files/b/B04.tif"]


def test_a_file_that_is_cut_on_the_server(server, fetch, tmp_path):
    product = shutil.copytree(server.links["a"], tmp_path / "cut")
    server.links["a"] = product
    content = (product / "B08.tif").read_bytes()
    (product / "B08.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(FetchError, match=r"B08\.tif"):
        fetch(sentinel1=False)
    assert not (tmp_path / "out" / "Here").exists()


def test_items_without_cloud_cover_or_with_an_interval_of_time(scene, empty_server, fetch):
    """Both are allowed by STAC: the scene classification decides, and the start is the date."""
    own = OLD | {"eo:cloud_cover": None}
    add_item(empty_server, scene[0], "a", "2021-06-05", properties=own)
    stated = stac._item(
        empty_server.items[0] | {"properties": own | {"datetime": None, "start_datetime": "2021-06-07T10:00:00Z"}}
    )
    assert stated.date == "2021-06-07"
    assert list(record(fetch(sentinel1=False))["sentinel2"]["dates"]) == ["2021-06-05"]


def test_all_pages_are_read_also_if_they_never_end(scene, empty_server, fetch):
    """Then each page has a next one, with the items of the first: the search stops when nothing is new."""
    empty_server.page_size = 1
    for day in (1, 2, 3):
        add_item(empty_server, scene[0], f"d{day}", f"2021-06-0{day}", properties=OLD)
    for empty_server.endless in (False, True):
        place = fetch(sentinel1=False, name=f"Endless_{empty_server.endless}")
        assert len(record(place)["sentinel2"]["items"]) == 3
    assert empty_server.requests.count("/v1/search") < 10


WITHOUT_ASSETS = {"type": "Feature", "id": "x", "collection": "s2", "properties": {"datetime": "2021-06-05"}}


@pytest.mark.parametrize(
    "page",
    [{"features": 3}, {"features": ["x"]}, {"features": [WITHOUT_ASSETS]}, {"features": [], "links": [3]}, [], "x"],
)
def test_a_search_with_another_answer(empty_server, fetch, page):
    empty_server.page = page
    with pytest.raises((DataError, FetchError)):
        fetch(sentinel1=False)


def test_a_kept_image_that_is_damaged_is_read_again(server, fetch, plain, tmp_path):
    server.fault = lambda path, times: (404, {}) if path.endswith("B12.tif") else None
    with pytest.raises(FetchError, match="B12"):
        fetch(sentinel1=False)
    server.fault = None
    for number, path in enumerate(sorted((tmp_path / "out").rglob("*.npy"))):
        path.write_bytes(path.read_bytes()[: (0, 40, 3000)[number % 3]])
    assert (reflectance(fetch(sentinel1=False)) == reflectance(plain)).all()


POLAR = [(15.0, 83.9), (-60.0, -79.9), (179.99, 78.0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"year": 2017}, "no MODIS label of 2017"),
        ({"lon": -30.0, "lat": 20.0}, "no label"),  # the open sea
        *(({"lon": lon, "lat": lat}, "no label|no Sentinel-2") for lon, lat in POLAR),
    ],
)
def test_places_without_label_or_image(fetch, changes, message):
    with pytest.raises(MissingDataError, match=message):
        fetch(**changes)


def test_what_a_place_takes_is_known_before_it_is_read(scene, server, fetch, tmp_path):
    """By the indexes of the files: no pixel is read; the bytes are those read later, but for one header per file."""
    services = server.services(tmp_path / "services.yaml", sentinel1=False)
    expected = download_bytes(place_of(scene), services)
    n_files, headers = len(server.sent), sum(server.sent.values())
    assert n_files == len(ASSETS) + 2  # twelve bands, their scene classification, MODIS and the reference
    server.sent.clear()
    assert not (tmp_path / "out").exists()
    fetch(sentinel1=False)
    read = sum(server.sent.values())
    assert headers < read
    assert read <= expected <= read + n_files * stac._HEADER_BYTES


def test_places_smaller_than_a_patch_are_one_patch(server, fetch):
    (patch,), _ = patches.read_many(patches.index(fetch(size_km=0.85, sentinel1=False)))
    assert patch.s2.shape == (13, 96, 96)
    assert Request(0, 0, 5.12).grid.shape == Request(0, 0, 2.57).grid.shape == (512, 512)  # whole patches


@pytest.mark.parametrize("damage", ["nothing", "{", '{"attribution": 3}', "s2.tif", "reference.tif"])
def test_folders_that_are_no_place(synthetic, tmp_path, damage):
    folder = shutil.copytree(synthetic, tmp_path / "place")
    assert places.read_place(folder)["synthetic"]
    if damage.endswith(".tif"):
        (folder / damage).unlink()
    elif damage == "nothing":
        (folder / "place.json").unlink()
    else:
        (folder / "place.json").write_text(damage)
    with pytest.raises((DataError, MissingDataError), match="place"):
        places.read_place(folder)


def test_a_product_of_the_neighbouring_zone(scene, empty_server, fetch, plain):
    add_item(empty_server, scene[0], "b", "2021-06-05", properties=OLD, crs="EPSG:32631")
    own, other = reflectance(plain), reflectance(fetch(sentinel1=False))
    assert abs(own - other).mean() < 0.1 * own.mean()


def test_the_grid_at_180_degrees_and_at_the_ends_of_utm(tmp_path):
    for lon, lat in POLAR:
        _, south, _, north = Request(lon, lat, 2.56).grid.bounds
        assert south < lat < north
    request = Request(180.0, -16.8, name="Taveuni")
    west, _, east, _ = request.grid.bounds
    assert west > east
    assert list(place_layers._tiles(request.grid, 3)) == ["S18E177", "S18W180"]
    world = np.tile((np.arange(4320) % 17 + 1).astype(np.uint8), (1, 720, 1))
    path = write(tmp_path / "world.tif", world, crs="EPSG:4326", transform=Affine(1 / 12, 0, -180, 0, -0.25, 90))
    found = stac.read_nearest(str(path), np.array([179.99, -179.99, 0.0]), np.array([-16.8, -16.8, 95.0]))
    assert found.tolist() == [world[0, 0, -1], world[0, 0, 0], 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"lat": 88.0}, {"lat": -85.0}, {"lon": 181.0}, {"lat": float("nan")}, {"size_km": 0.0}, {"size_km": 500.0},
        {"year": 1999}, {"name": "../out"}, {"name": "a b"}, {"months": (8, 6)}, {"months": (0, 3)}, {"dates": 0},
        {"months": (6,)}, {"months": (6, 7, 8)}, {"months": (6.0, 7.5)}, {"months": "68"}, {"months": ()},
        {"year": 2020.5}, {"dates": 2.5}, {"dates": True}, {"lon": True}, {"name": None}, {"catalogue": 3},
        {"reference": None}, {"name": 300 * "a"}, {"lat": 10**400},
    ],
)  # fmt: skip
def test_requests_out_of_range(changes):
    with pytest.raises(ParameterError, match=next(iter(changes))):
        Request(**{"lon": 10.0, "lat": 50.0} | changes)


def test_a_catalogue_that_is_not_there(scene, empty_server, tmp_path):
    known = yaml.safe_load(empty_server.services(tmp_path / "s.yaml").read_text())
    known["catalogues"]["earth-search"]["url"] = f"{empty_server.url}/nothing"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(known))
    with pytest.raises(FetchError, match="404"):
        fetch_place(place_of(scene), tmp_path / "out", services=tmp_path / "s.yaml")
    with pytest.raises(ParameterError, match="catalogue"):
        fetch_place(place_of(scene, catalogue="other"), tmp_path / "out")


def test_a_reference_with_unknown_codes(server, fetch):
    path = next(server.folder.glob("reference_*"))
    with rasterio.open(path) as file:
        array, profile = file.read(), file.profile
    array[array == 10] = 17
    with rasterio.open(path, "w", **profile | {"driver": "GTiff"}) as file:
        file.write(array)
    with pytest.raises(DataError, match="17"):
        fetch()
    assert patches.index(fetch(reference=""))["dfc"].isna().all()


def test_another_place_of_that_name(scene, server, fetch, tmp_path):
    fetch(sentinel1=False)
    with pytest.raises(ParameterError, match="name"):
        fetch(dates=1, sentinel1=False)
    with pytest.raises(ParameterError, match="other services"):  # it is not taken for one of the public services
        fetch_place(place_of(scene), tmp_path / "out")


def test_only_the_shipped_services_give_ledger_lines_of_real_places(server, fetch, monkeypatch):
    """A server may offer any image: its places are unverified, unless its addresses are those of the shipped file."""
    other = fetch(sentinel1=False)
    assert record(other)["services"].startswith("others, ")
    assert identity.data_kind([other]) == "unverified"
    monkeypatch.setattr(places, "SERVICES", server.services(other.parent / "shipped.yaml", sentinel1=False))
    real = fetch(name="Real", sentinel1=False)
    assert identity.data_kind([real]) == "place"
    assert identity.data_kind([real, other]) == "unverified"
    (real / "s2.tif").write_bytes((other / "reference.tif").read_bytes())
    assert identity.data_kind([real]) == "unverified"


# Lists and services --------------------------------------------------------------------------------


def test_the_shipped_services_are_complete():
    known = read_services()
    for catalogue in known["catalogues"].values():
        assert len(catalogue["bands"]) == len(ASSETS)
        assert [name is None for name in catalogue["bands"]] == [name is None for name in ASSETS]
    classes = known["references"]["worldcover"]["classes"]
    assert set(classes) == {10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100}
    legends.DFC2020.check(np.array([code for code in classes.values() if code], np.uint8), SERVICES)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *((read_services, text) for text in ("", "[]", "catalogues: 1\nmodis: {}\nreferences: {}", "a: [", "\x00")),
        *((read_places, text) for text in ("", "1", "- 3", "- {lon: 1}", "- {lon: a, lat: 2}")),
        (read_places, "- {lon: 1, lat: 2, hight: 3}"),
    ],
)
def test_services_and_lists_of_another_form(tmp_path, read, text):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises((DataError, ParameterError), match=r"f\.yaml"):
        read(tmp_path / "f.yaml")


def test_a_list_of_places(tmp_path):
    (tmp_path / "p.yaml").write_text("- {lon: 1, lat: 2, reason: rice}\n- {lon: 1, lat: 2, name: B, months: [2, 3]}\n")
    first, second = read_places(tmp_path / "p.yaml")
    assert first.title == "N2_0000_E1_0000"
    assert second.season == ("season", "2021-02-01/2021-03-31")
    for same in (
        "- {lon: 1, lat: 2}\n- {lon: 1, lat: 2}\n",
        "- {lon: 1, lat: 2, name: a}\n- {lon: 1, lat: 3, name: A}\n",
    ):
        (tmp_path / "p.yaml").write_text(same)
        with pytest.raises(DataError, match="twice"):
            read_places(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text("- {lon: 1, lat: 2}\n- {lon: 1, lat: 2, months: [6]}\n")
    with pytest.raises(ParameterError, match=r"p\.yaml, number 2: place: months: found \(6,\), expected two months"):
        read_places(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text("- &a {lon: 1, lat: 2, name: a}\n- {<<: *a, name: b}\n")
    assert [request.title for request in read_places(tmp_path / "p.yaml")] == ["a", "b"]


def test_the_synthetic_place_has_the_form_of_a_fetched_one(synthetic):
    found, report = patches.read_many(patches.index(synthetic))
    assert len(found) == 4
    assert report.repaired == report.skipped == []
    assert json.loads((synthetic / "place.json").read_text())["synthetic"]
    assert {path.name for path in synthetic.glob("*.tif")} == {"s1.tif", "s2.tif", "coarse.tif", "reference.tif"}
    for patch in found:
        ids, _ = cells.cell_ids(patch.transform, patch.crs, patch.lc[0].shape)
        assert all(len(np.unique(patch.lc[0][ids == cell])) == 1 for cell in range(ids.max() + 1))
    made = (synthetic / "s2.tif").stat().st_mtime_ns
    assert (sample_place(synthetic.parent, seed=3) / "s2.tif").stat().st_mtime_ns == made


def test_a_signature_that_expires_in_the_middle_is_renewed(server, fetch, plain):
    """
    After some images the address is refused with 403; a new token continues, and the map is the same.

    No token is recorded. If the new one is refused as well, the error names the status.
    """
    given, read = [], []
    server.tokens = lambda: given.append(1) or f"sig={min(2, len(given))}"

    def expire(path, times):
        if path.startswith("/files/a/"):
            read.append(path)
            server.token = "sig=1" if len(read) < 8 else "sig=2"

    server.fault = expire
    folder = fetch(signed=True, sentinel1=False)
    assert (reflectance(folder) == reflectance(plain)).all()
    assert "sig=" not in (folder / "place.json").read_text()
    assert len(given) >= 2
    server.fault, server.token = None, "sig=3"
    with pytest.raises(FetchError, match="403"):
        fetch(signed=True, sentinel1=False, name="Never")
