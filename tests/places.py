"""Small scenes as files, and networks with random weights, for the tests of mapping."""

import numpy as np
import rasterio
from affine import Affine

UTM = "EPSG:32632"
AT = Affine(10, 0, 549892.697, 0, -10, 6344077.614)  # no multiple of 10 m, as in SEN12MS


def write(path, array, *, crs=UTM, transform=AT, names=(), tags=None, **more):
    """A GeoTIFF of an array (bands, H, W), with names of its bands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype} | more
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as file:
        file.write(array)
        if names:
            file.descriptions = names
        if tags:
            file.update_tags(**tags)
    return path


def first_band(path):
    """The pixels of the first band of a file."""
    with rasterio.open(path) as file:
        return file.read(1)


def scene_arrays(rows=150, cols=200, seed=0):
    """S2 (13, H, W) and S1 (2, H, W) with fields of 16 px and noise; B10 nearly black."""
    rng = np.random.default_rng(seed)
    fields = np.kron(rng.uniform(0.2, 1, (15, rows // 16 + 1, cols // 16 + 1)), np.ones((16, 16)))[:, :rows, :cols]
    noisy = np.clip(fields + rng.normal(0, 0.05, fields.shape), 0.05, 1)
    s2 = (300 + 4000 * noisy[:13]).astype(np.uint16)
    s2[10] = 5 + (20 * noisy[10]).astype(np.uint16)
    s2[0] += 600
    s1 = (np.array([-12.0, -19.0])[:, None, None] + 8 * (noisy[13:] - 0.5)).astype(np.float32)
    return s2, s1


def network(path, inputs=("s2", "s1"), seed=0, kind="fcn", width=4):
    """A checkpoint of a small network with random weights that spread its answers over the classes."""
    import torch  # only here: the tests of readers do without

    from lcfuse_core.data.bands import Statistics
    from lcfuse_core.training.checkpoint import Run, save_checkpoint
    from lcfuse_core.training.plan import TrainPlan

    plan = TrainPlan(network=kind, width=width, inputs=inputs, seed=seed, precision="float32", device="cpu")
    torch.manual_seed(seed)
    net = plan.build().eval()
    torch.nn.init.normal_(net.classify.weight, std=3.0)
    mean, std = [0.25] * 13 + [-12.0, -19.0], [0.1] * 13 + [3.0, 3.0]
    return save_checkpoint(Run(net, plan, Statistics(tuple(mean), tuple(std))), path)


def member(path, **more):
    """The same as a member."""
    from lcfuse_core.mapping.predict import load_member

    return load_member(network(path, **more))
