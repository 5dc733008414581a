"""The lowest versions that are tested are those that are asked for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "pyproject.toml"
PINS = ROOT / "constraints-minimum.txt"


@pytest.mark.skipif(not PINS.exists(), reason="not in a clone")
def test_the_lowest_versions_are_those_of_the_project():
    project = tomllib.loads(PROJECT.read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["test"]]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", PINS.read_text(), flags=re.MULTILINE))
    for requirement in map(Requirement, wanted):
        if requirement.name == "squidpy":  # asks for newer releases of the others
            continue
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        assert Version(pins[requirement.name]) == Version(bound.version), requirement.name
