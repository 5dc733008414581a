"""The examples of the docstrings run and print what they say."""

import doctest
import importlib

import matplotlib.pyplot as plt
import pytest

import stdenoise as st


def examples():
    for room in ("pp", "tl", "get", "metrics", "pl", "datasets", "methods", "benchmark"):
        module = importlib.import_module(f"stdenoise.{room}")
        for name in module.__all__:
            yield from doctest.DocTestFinder(recurse=False).find(getattr(module, name), f"{room}.{name}", globs={})
    yield from doctest.DocTestFinder(recurse=False).find(type(st.settings), "settings", globs={})


EXAMPLES = {test.name: test for test in examples() if test.examples}


@pytest.fixture(autouse=True)
def closed_figures():
    """Close what the examples draw."""
    yield
    plt.close("all")


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name):
    printed = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(EXAMPLES[name], out=printed.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(printed)


def test_every_room_has_examples():
    assert {"pp", "tl", "get", "metrics", "pl", "datasets", "methods", "benchmark", "settings"} == {
        name.split(".")[0] for name in EXAMPLES
    }
