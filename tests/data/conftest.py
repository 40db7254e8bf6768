"""What all tests of the data share."""

import pytest

from jaxvol.data import reading


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    """Three tries of a read, without the waits between them."""
    monkeypatch.setattr(reading, "BACKOFF_S", (0.001, 0.001))
