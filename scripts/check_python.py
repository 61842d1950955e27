"""Stop with one clear line when Python is too old for the book. Runs on any Python 3."""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "Python %d.%d is here, 3.11 or later is needed. Name another: make PYTHON=python3.11" % sys.version_info[:2]
    )
