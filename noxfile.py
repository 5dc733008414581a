"""Development tasks. `pip install nox`, then `nox -s tests`; `nox --list` shows every session.

Every install uses the versions of `constraints.txt`, but for `minimum` and `newest`, which test with the lowest versions that
`pyproject.toml` allows and with the newest releases.
"""

import os
import shutil
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "typecheck", "tests"]
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = ("-c", "constraints.txt")
ENV = {"MPLBACKEND": "agg"}
# Each of several processes has a core of its own.
CORES = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
PARALLEL = ("-n", str(CORES), "--dist", "worksteal") if CORES > 1 else ()


def run_tests(session: nox.Session) -> None:
    """Run the tests, on all cores that this process may use; arguments after `--` go to pytest."""
    env = ENV | ({"OMP_NUM_THREADS": "1"} if PARALLEL else {})
    session.run("pytest", *PARALLEL, *session.posargs, env=env)


def install(session: nox.Session, *packages: str, groups: tuple[str, ...] = ()) -> None:
    """Install packages and dependency groups under the constraints."""
    session.install(*CONSTRAINTS, *packages, *nox.project.dependency_groups(PYPROJECT, *groups))


@nox.session
def demo(session: nox.Session) -> None:
    """Run the command-line demo on a small simulated tissue."""
    install(session, ".")
    session.run("stdenoise", "demo", *session.posargs, env=ENV)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after `--` go to pytest."""
    install(session, "-e", ".[squidpy]", groups=("test",))
    if shutil.which("R"):
        try:
            install(session, "-e", ".[r]")
        except CommandFailed:
            session.warn("rpy2 could not be installed: the tests that compare with R are skipped")
    run_tests(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    install(session, groups=("lint",))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the type hints."""
    install(session, "-e", ".", groups=("typecheck",))
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation. A warning is an error; notebooks are shown as committed, not executed."""
    install(session, "-e", ".", groups=("doc",))
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session
def notebooks(session: nox.Session) -> None:
    """Execute the notebooks in place."""
    install(session, "-e", ".", groups=("notebooks",))
    paths = session.posargs or sorted(str(path) for path in Path("notebooks").glob("*.ipynb"))
    options = ("--to", "notebook", "--execute", "--inplace", "--ExecutePreprocessor.timeout=600")
    session.run("jupyter", "nbconvert", *options, *paths)


@nox.session
def bench(session: nox.Session) -> None:
    """Time one epoch of DUSTED; arguments after `--` go to the script."""
    install(session, ".")
    session.run("python", "benchmarks/dusted_epoch.py", *session.posargs, env=ENV)


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel and the source distribution, and check their metadata."""
    install(session, "build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *(str(path) for path in Path("dist").iterdir()))


@nox.session
def minimum(session: nox.Session) -> None:
    """Run the tests with the lowest versions that pyproject.toml allows; arguments after `--` go to pytest."""
    # All of them are named in the file: pip would search for hours.
    session.install("--no-deps", "-r", "constraints-minimum.txt")
    session.install("--no-deps", "-e", ".")
    run_tests(session)


@nox.session
def newest(session: nox.Session) -> None:
    """Run the tests with the newest releases of everything; arguments after `--` go to pytest."""
    session.install("-e", ".[squidpy]", *nox.project.dependency_groups(PYPROJECT, "test"))
    run_tests(session)
