"""
Networks that map the channels of each pixel to class logits: an FCN with a small receptive field, a U-Net, a
DeepLabv3+ and a network that stays at full resolution; each with S1 and S2 stacked or with one branch per sensor.

All are fully convolutional and return one logit per class and pixel, at the size of the input. They differ in their
receptive fields: 110 m for the FCN, more than a coarse cell of 463 m for U-Net and DeepLabv3+. With labels that are
constant over such a cell this matters: a network that sees the whole cell can learn its shape.

Every 3x3 convolution is followed by batch normalisation. In evaluation mode that is a fixed factor and offset per
channel, so a map does not depend on how a scene is cut into windows; group or instance normalisation and the
image-level pooling of DeepLabv3+ depend on the whole window and are left out for this reason.

Axes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcfuse_core.data.legends import SCORED
from lcfuse_core.errors import ParameterError


def _conv_bn_relu(inputs: int, outputs: int, size: int = 3, *, stride: int = 1, rate: int = 1) -> nn.Sequential:
    """Return a convolution (*rate* > 1: atrous, with taps that far apart), batch normalisation and ReLU."""
    padding = rate * (size // 2)
    conv = nn.Conv2d(inputs, outputs, size, stride, padding, dilation=rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until H and W are multiples of *multiple*, as downsampling needs."""
    rows, cols = (-image.shape[-2]) % multiple, (-image.shape[-1]) % multiple
    return F.pad(image, (0, cols, 0, rows), mode="replicate") if rows or cols else image


class FCN(nn.Module):
    """
    Five 3x3 convolutions and a classifier per pixel: receptive field 11 x 11 pixels.

    Malkin, Robinson & Jojic 2021 (arXiv 2101.01154), with 64 filters (`width`); the default is half of that, 42 k
    parameters. Batch normalisation is our addition: it allows the high learning rate of a short training.
    """

    default_width = 32

    def __init__(self, in_channels: int, n_classes: int, width: int) -> None:
        super().__init__()
        first = _conv_bn_relu(in_channels, width)
        self.layers = nn.Sequential(first, *(_conv_bn_relu(width, width) for _ in range(4)))
        self.classify = nn.Conv2d(width, n_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of an image (N, C, H, W)."""
        return self.classify(self.layers(image))  # (N, classes, H, W)


class UNet(nn.Module):
    """
    U-Net of four levels: max-pooling down, transposed convolutions up, skip connections at each level.

    Ronneberger, Fischer & Brox 2015 (arXiv 1505.04597), which has five levels, `width` 64 and unpadded convolutions
    without normalisation.
    """

    default_width = 16
    levels = 4

    def __init__(self, in_channels: int, n_classes: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(self.levels)]  # 16, 32, 64, 128
        self.down = nn.ModuleList(
            _double(above, here) for above, here in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        rising = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (128, 64), (64, 32), (32, 16)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, stride=2) for below, here in rising)
        self.up = nn.ModuleList(_double(2 * here, here) for _, here in rising)
        self.classify = nn.Conv2d(width, n_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of an image (N, C, H, W)."""
        rows, cols = image.shape[-2:]
        features = _pad_to_multiple(image, 2 ** (self.levels - 1))
        across = []
        for level, block in enumerate(self.down):
            features = block(F.max_pool2d(features, 2) if level else features)  # (N, 2^l width, H/2^l, W/2^l)
            across.append(features)
        for enlarge, block, detail in zip(self.enlarge, self.up, across[-2::-1], strict=True):
            features = block(torch.cat([detail, enlarge(features)], dim=1))
        return self.classify(features)[..., :rows, :cols]  # (N, classes, H, W)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_conv_bn_relu(inputs, outputs), _conv_bn_relu(outputs, outputs))


class _Residual(nn.Module):
    """
    Two 3x3 convolutions whose result is added to their input (He et al. 2016, arXiv 1512.03385).

    If size or channels change, a 1x1 convolution adapts the input.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, rate: int = 1) -> None:
        super().__init__()
        self.first = _conv_bn_relu(inputs, outputs, stride=stride, rate=rate)
        self.second = _conv_bn_relu(outputs, outputs, rate=rate)[:2]  # the ReLU comes after the sum
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv_bn_relu(inputs, outputs, 1, stride=stride)[:2]

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same size divided by the stride."""
        return F.relu(self.second(self.first(features)) + self.shortcut(features))


class _ASPP(nn.Module):
    """
    Atrous spatial pyramid pooling: parallel convolutions with several rates, then merged.

    Chen et al. 2018 (arXiv 1802.02611), without the image-level pooling (see the head of this file). Their rates 6, 12,
    18 are for images of 513 pixels; ours, 2, 4, 6, suit the 8 x 8 features of a crop of 64.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.views = nn.ModuleList([_conv_bn_relu(inputs, outputs, 1)])
        self.views.extend(_conv_bn_relu(inputs, outputs, rate=rate) for rate in (2, 4, 6))
        self.merge = _conv_bn_relu(outputs * len(self.views), outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, outputs, H, W)."""
        return self.merge(torch.cat([view(features) for view in self.views], dim=1))


class DeepLabV3Plus(nn.Module):
    """
    A residual encoder of stride 8, ASPP, and a decoder with detail from stride 2.

    Chen et al. 2018 (arXiv 1802.02611); their encoder is far larger and of stride 16. `width` 64 gives an encoder with
    the channels of ResNet-18.
    """

    default_width = 16

    def __init__(self, in_channels: int, n_classes: int, width: int) -> None:
        super().__init__()
        detail = max(1, 3 * width // 4)
        self.near = nn.Sequential(_conv_bn_relu(in_channels, width, stride=2), _Residual(width, width))
        self.far = nn.Sequential(
            _Residual(width, 2 * width, stride=2),
            _Residual(2 * width, 4 * width, stride=2),
            _Residual(4 * width, 8 * width, rate=2),  # atrous instead of a further stride
            _ASPP(8 * width, 4 * width),
        )
        self.detail = _conv_bn_relu(width, detail, 1)
        self.decode = _double(4 * width + detail, 4 * width)
        self.classify = nn.Conv2d(4 * width, n_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of an image (N, C, H, W)."""
        rows, cols = image.shape[-2:]
        near = self.near(_pad_to_multiple(image, 8))  # (N, w, H/2, W/2)
        far = _enlarge(self.far(near), 4)  # (N, 4w, H/8, W/8) -> (N, 4w, H/2, W/2)
        features = self.decode(torch.cat([far, self.detail(near)], dim=1))  # (N, 4w, H/2, W/2)
        return _enlarge(self.classify(features), 2)[..., :rows, :cols]  # (N, classes, H, W)


def _enlarge(features: Tensor, factor: int) -> Tensor:
    return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)


class FullResolution(nn.Module):
    """
    Five blocks at full resolution, each with parallel 1x1, 3x3 and 5x5 convolutions: receptive field 21 x 21 pixels.

    *Like* the resolution-preserving backbone of L2HNet (Li et al. 2022, ISPRS J. Photogramm. 192), from its
    description: the 1x1 convolution has half of the channels, each block adds to its input. The loss of L2HNet and its
    selection of confident areas are not included.
    """

    default_width = 32

    def __init__(self, in_channels: int, n_classes: int, width: int) -> None:
        super().__init__()
        self.widen = _conv_bn_relu(in_channels, width, 1)
        self.blocks = nn.ModuleList(_ParallelScales(width) for _ in range(5))
        self.classify = nn.Conv2d(width, n_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of an image (N, C, H, W)."""
        features = self.widen(image)
        for block in self.blocks:
            features = features + block(features)
        return self.classify(features)


class _ParallelScales(nn.Module):
    """Parallel convolutions of 1x1, 3x3 and 5x5, with half, a quarter and a quarter of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        quarter = width // 4
        shares = ((1, width - 2 * quarter), (3, quarter), (5, quarter))
        self.scales = nn.ModuleList(_conv_bn_relu(width, share, size) for size, share in shares if share)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        return torch.cat([scale(features) for scale in self.scales], dim=1)


class _LateFusion(nn.Module):
    """One network per sensor and a classifier of their joint features; early fusion stacks the channels instead."""

    def __init__(self, kind: _Kind, channels: tuple[int, ...], n_classes: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.branches = nn.ModuleList(kind(n, width, width) for n in channels)
        self.classify = nn.Conv2d(width * len(channels), n_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of an image (N, C, H, W)."""
        parts = zip(self.branches, image.split(self.channels, dim=1), strict=True)
        features = torch.cat([F.relu(branch(part)) for branch, part in parts], dim=1)  # (N, 2 width, H, W)
        return self.classify(features)


_Kind = type[FCN] | type[UNet] | type[DeepLabV3Plus] | type[FullResolution]

NETWORKS: dict[str, _Kind] = {
    "fcn": FCN,
    "unet": UNet,
    "deeplabv3plus": DeepLabV3Plus,
    "full_resolution": FullResolution,
}


def build(name: str, *, in_channels: int | tuple[int, ...] = 15, width: int | None = None) -> nn.Module:
    """
    Return the network of that name in `NETWORKS`, with fresh weights from torch's global random generator.

    It maps float32 (N, in_channels, H, W) to logits (N, 8, H, W), for H and W of at least 32. *in_channels* is
    13 (S2), 2 (S1) or 15 (both) for one network, (13, 2) for `_LateFusion` of two; *width* is the number of channels of
    the first layer (None: the network's default). Raises ParameterError on an unknown name or a width below 1.

    >>> parameter_count(build("fcn"))
    41768
    """
    if name not in NETWORKS:
        known = f"one of {', '.join(NETWORKS)}"
        raise ParameterError("network", found=repr(name), expected=known, do="Choose one of these.")
    kind = NETWORKS[name]
    width = kind.default_width if width is None else width
    if width < 1:
        raise ParameterError("width", found=str(width), expected="1 or more", do="Choose 16, 32 or 64.")
    if isinstance(in_channels, tuple):
        return _LateFusion(kind, in_channels, len(SCORED), width)
    return kind(in_channels, len(SCORED), width)


def parameter_count(network: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(weights.numel() for weights in network.parameters() if weights.requires_grad)


def receptive_field(network: nn.Module) -> int:
    """
    Measure the side of the receptive field of a network of 15 channels, in pixels, at most 256.

    These are the rows where the gradient of the centre output is not zero, over several random images (max-pooling
    passes only one of four pixels). A copy of the network with positive weights is used, so that no ReLU hides a path.
    """
    size = 256  # of the images
    probe = deepcopy(network).cpu().float().eval()
    for layer in probe.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    for weights in probe.parameters():
        weights.requires_grad_(False).abs_()
    rng = torch.Generator().manual_seed(0)
    reached = torch.zeros(size, dtype=torch.bool)
    for _ in range(8):
        image = torch.rand((1, 15, size, size), generator=rng, requires_grad=True)
        probe(image)[..., size // 2, size // 2].sum().backward()
        assert image.grad is not None
        reached |= (image.grad != 0).any(dim=(0, 1, 3))
    rows = reached.nonzero()
    return int(rows.max() - rows.min() + 1)
