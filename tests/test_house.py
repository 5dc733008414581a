"""The plan of the house: floors, what each room may import, and the manners of public functions."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import stdenoise as st

SOURCE = Path(st.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS = {
    **dict.fromkeys(
        ["_keys", "_settings", "_device", "_random", "_validate", "_paths", "_files", "_mclust", "_memory"], 0
    ),
    **dict.fromkeys(["graph", "nn", "train", "scores"], 1),
    **dict.fromkeys(
        [
            "_build_graph",
            "_context",
            "_image",
            "_expression",
            "_spots",
            "_results",
            "_highly_variable",
            "_held_out",
            "_patches",
            "_source",
            "_scratch",
            "_stream",
        ],
        1.5,
    ),
    **dict.fromkeys(["methods", "_clusters"], 2),
    "_plan": 2.5,
    "_inputs": 2.5,
    "_trial": 2.5,
    **dict.fromkeys(["pp", "tl", "get", "metrics", "pl", "datasets"], 3),
    "benchmark": 3.5,
    "cli": 4,
    "__main__": 5,
}
PURE = ("methods", "nn", "train", "graph", "scores")


def name_of(path):
    return str(path.relative_to(SOURCE))


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(path):
    """Yield the full name of everything a file imports, inside functions too, and whether only for type hints."""

    def walk(node, for_types):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, for_types
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", for_types
        for child in ast.iter_child_nodes(node):
            yield from walk(child, for_types or is_type_checking(node))

    yield from walk(ast.parse(path.read_text()), False)


def rooms_used(path):
    return {name.split(".")[1] for name, _ in imports_of(path) if name.startswith("stdenoise.")} - {room_of(path)}


def public_objects():
    for room in ("pp", "tl", "get", "metrics", "pl", "datasets", "methods", "benchmark"):
        module = importlib.import_module(f"stdenoise.{room}")
        for name in module.__all__:
            yield f"{room}.{name}", getattr(module, name)


FUNCTIONS = {name: thing for name, thing in public_objects() if inspect.isfunction(thing)}
VERBS = {
    name: function
    for name, function in FUNCTIONS.items()
    if not name.startswith(("datasets.", "methods.", "benchmark."))
}


# Floors


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) != "__init__"], ids=name_of)
def test_rooms_import_from_no_higher_floor(path):
    own = FLOORS[room_of(path)]
    for room in rooms_used(path) & set(FLOORS):
        assert FLOORS[room] <= own, f"{room_of(path)} on floor {own} imports {room} on floor {FLOORS[room]}"


def test_public_rooms_do_not_import_each_other():
    for path in FILES:
        if FLOORS.get(room_of(path)) == 3:
            assert not [room for room in rooms_used(path) if FLOORS.get(room) == 3], name_of(path)


def test_rooms_of_one_floor_do_not_import_in_a_circle():
    uses = {room: set() for room in FLOORS}
    for path in FILES:
        if room_of(path) in FLOORS:
            uses[room_of(path)] |= rooms_used(path) & set(FLOORS)
    while uses:
        free = {room for room, used in uses.items() if not used & set(uses)}
        assert free, f"a circle among {sorted(uses)}"
        uses = {room: used for room, used in uses.items() if room not in free}


def test_only_the_command_line_imports_the_whole_package():
    for path in FILES:
        if any(name == "stdenoise" for name, _ in imports_of(path)):
            assert room_of(path) == "cli"


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in PURE], ids=name_of)
def test_methods_never_see_anndata_or_plots(path):
    # scvi-tools takes nothing but an AnnData: its adapter makes one.
    allowed = {"anndata"} if name_of(path) == "methods/scvi.py" else set()
    for name, _ in imports_of(path):
        assert name.split(".")[0] not in {"anndata", "scanpy", "squidpy", "matplotlib"} - allowed


def test_the_ground_floor_needs_no_torch_at_import():
    for path in FILES:
        if FLOORS.get(room_of(path)) == 0:
            top = ast.parse(path.read_text()).body
            names = [ast.unparse(node) for node in top if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not [name for name in names if re.search(r"\b(torch|anndata|scanpy|matplotlib)\b", name)], name_of(
                path
            )


# Files


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_have_a_docstring_and_no_assert(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_seeds_or_draws_from_a_global_generator(path):
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    banned = r"(torch\.manual_seed|torch\.cuda\.manual_seed.*|random\.seed|np\.random\.(?!default_rng|Generator|SeedSequence).*)"
    assert not [call for call in calls if re.fullmatch(banned, call)]
    draws = r"torch\.(randn?|randint|randperm|normal|bernoulli|multinomial)"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and re.fullmatch(draws, ast.unparse(node.func)):
            assert "generator" in [keyword.arg for keyword in node.keywords]


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) != "cli"], ids=name_of)
def test_only_the_command_line_prints(path):
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if call in ("print", "click.echo", "plt.show", "logging.basicConfig")]


# Manners


def test_there_are_public_functions():
    assert {
        "pp.spatial_graph",
        "tl.denoise",
        "get.denoised",
        "metrics.morans_i",
        "pl.compare",
        "datasets.tissue",
    } <= set(FUNCTIONS)


@pytest.mark.parametrize("name", VERBS)
def test_adata_comes_first(name):
    first = next(iter(inspect.signature(VERBS[name]).parameters.values()))
    assert first.name == "adata"
    assert first.default is inspect.Parameter.empty


@pytest.mark.parametrize("name", FUNCTIONS)
def test_at_most_two_arguments_are_positional(name):
    kinds = [parameter.kind for parameter in inspect.signature(FUNCTIONS[name]).parameters.values()]
    assert sum(kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for kind in kinds) <= 2
    assert inspect.Parameter.VAR_POSITIONAL not in kinds


# Returns a table and writes nothing.
READS = {"tl.cross_validate"}


@pytest.mark.parametrize("name", [name for name in VERBS if name.startswith(("pp.", "tl.")) and name not in READS])
def test_verbs_that_write_can_copy(name):
    assert inspect.signature(VERBS[name]).parameters["copy"].default is False


@pytest.mark.parametrize("name", FUNCTIONS)
def test_everything_is_typed(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in signature.parameters.values())


def sections_of(thing):
    """Split a docstring into its sections, by their underlined headings."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", inspect.getdoc(thing), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_have_their_sections(name):
    wanted = {"Returns", "Examples"} | ({"Parameters"} if inspect.signature(FUNCTIONS[name]).parameters else set())
    assert wanted <= set(sections_of(FUNCTIONS[name]))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if inspect.signature(FUNCTIONS[name]).parameters])
def test_docstrings_describe_exactly_the_parameters(name):
    described = re.findall(r"^(\*{0,2}\w[\w, *]*)$", sections_of(FUNCTIONS[name])["Parameters"], flags=re.MULTILINE)
    names = [part.strip().lstrip("*") for line in described for part in line.split(",")]
    assert names == list(inspect.signature(FUNCTIONS[name]).parameters)


@pytest.mark.parametrize("room", ["pp", "tl", "get", "metrics", "pl", "datasets", "methods", "benchmark"])
def test_rooms_export_what_they_have(room):
    module = importlib.import_module(f"stdenoise.{room}")
    public = {name for name, thing in vars(module).items() if not name.startswith("_") and not inspect.ismodule(thing)}
    assert set(module.__all__) == public
