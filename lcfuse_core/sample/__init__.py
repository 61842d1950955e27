"""The synthetic sample: landscapes, sensors and the world of patches made from them."""
