"""Tests of figures draw as the book does."""

import matplotlib.pyplot as plt
import pytest

from lcfuse_core.book import images


@pytest.fixture
def book_style():
    """Draw in the style of the book, and leave nothing open."""
    with plt.rc_context():
        plt.switch_backend("agg")
        images.use_book_style()
        yield
        plt.close("all")
