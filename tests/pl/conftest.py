import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    """Fail when a plot is shown, and close the figures."""
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    yield
    plt.close("all")
