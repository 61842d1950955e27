"""Networks: receptive fields, sizes and gradients."""

import pytest
import torch
from torch import nn

from lcfuse_core.errors import ParameterError
from lcfuse_core.models.networks import NETWORKS, build, parameter_count, receptive_field

CELL_PX = 46.3
"""Side of a coarse cell in pixels of 10 m."""


@pytest.fixture(params=[*((name, 15) for name in NETWORKS), ("fcn", (13, 2)), ("unet", (13, 2))], ids=str)
def network(request):
    """Each registered network, small, with weights from a fixed seed; two of them with a branch per sensor."""
    torch.manual_seed(0)
    name, in_channels = request.param
    return build(name, in_channels=in_channels, width=4).eval()


@pytest.mark.parametrize(("rows", "cols"), [(64, 64), (32, 33), (50, 77)])
def test_logits_have_the_size_of_the_image(network, rows, cols):
    """Eight finite logits for each pixel, for even and odd sizes."""
    logits = network(torch.randn(2, 15, rows, cols))
    assert logits.shape == (2, 8, rows, cols)
    assert logits.isfinite().all()


def test_every_weight_gets_a_gradient(network):
    """No layer is built and then forgotten in `forward`."""
    network.train()(torch.randn(2, 15, 64, 64)).square().mean().backward()
    for name, weights in network.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.abs().sum() > 0, name


def test_images_of_a_batch_do_not_meet(network):
    """In evaluation mode an image's logits do not depend on its neighbours in the batch."""
    images = torch.randn(3, 15, 40, 40)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), atol=1e-5, rtol=1e-5)


def test_a_far_pixel_changes_nothing(network):
    """Outside the receptive field the logits stay: a map does not depend on the cutting of a scene."""
    field = receptive_field(network)
    image = torch.zeros(1, 15, 256, 256)
    changed = image.clone()
    changed[..., 0, 0] = 100.0
    difference = (network(image) - network(changed)).abs().amax(dim=1)[0]
    assert difference[0, 0] > 0
    # A stride makes the field a little lopsided, hence at most one field and not half of it.
    assert difference[field:, :].max() == 0
    assert difference[:, field:].max() == 0


def test_receptive_fields_of_the_networks():
    """FCN and full-resolution network: smaller than a coarse cell; the other two: larger."""
    fields = {name: receptive_field(build(name, width=4)) for name in NETWORKS}
    assert (fields["fcn"], fields["full_resolution"]) == (11, 21)
    assert CELL_PX < fields["unet"] < fields["deeplabv3plus"] < 256


@pytest.mark.parametrize(("size", "rate", "expected"), [(1, 1, 1), (3, 1, 3), (5, 1, 5), (3, 4, 9)])
def test_receptive_field_of_one_convolution(size, rate, expected):
    """A single (atrous) convolution has the receptive field of its extent, and measuring leaves it as it was."""
    layer = nn.Conv2d(15, 3, size, padding="same", dilation=rate)
    before = layer.weight.clone()
    assert receptive_field(layer) == expected
    assert torch.equal(layer.weight, before)


def test_the_fcn_has_the_weights_of_its_description():
    """15 -> w, four times w -> w, 3x3 each with two numbers of normalisation a channel; then w -> 8."""
    w = 64
    expected = 9 * 15 * w + 4 * 9 * w * w + 5 * 2 * w + 8 * (w + 1)
    assert parameter_count(build("fcn", width=w)) == expected


def test_networks_are_small_by_default_and_scale_by_width():
    """Defaults fit two processor cores; twice the width is two to four times the weights."""
    for name in NETWORKS:
        small = parameter_count(build(name))
        assert 3e4 < small < 1e6
        default_width = NETWORKS[name].default_width
        assert 2 < parameter_count(build(name, width=2 * default_width)) / small < 4


def test_a_network_is_chosen_by_a_known_name():
    """The error lists the names."""
    with pytest.raises(ParameterError, match="found 'u-net', expected one of fcn, unet, deeplabv3plus"):
        build("u-net")
    with pytest.raises(ParameterError, match="found 0"):
        build("fcn", width=0)


def test_branches_of_a_late_fusion_do_not_mix_their_images():
    """The features of one sensor stay as they are, whatever the other one measures."""
    torch.manual_seed(0)
    network = build("fcn", in_channels=(2, 1), width=4).eval()
    image = torch.randn(1, 3, 32, 32)
    other = image.clone()
    other[:, 2] = 0
    first, second = network.branches
    torch.testing.assert_close(first(image[:, :2]), first(other[:, :2]))
    assert (network(image) != network(other)).any()
    assert (second(image[:, 2:]) != second(other[:, 2:])).any()
    assert parameter_count(network) > parameter_count(build("fcn", in_channels=3, width=4))
