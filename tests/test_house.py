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
FLOORS = (
    {"_base"},
    {"spatial"},
    {"stats", "nn", "train", "_io"},
    {"methods"},
    {"tl", "metrics", "pp", "get", "pl", "datasets"},
    {"benchmark", "__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS, start=1) for room in rooms}
PUBLIC = FLOOR["tl"]
# scvi-tools takes nothing but an AnnData: its adapter makes one.
EXTERNAL = {"methods/scvi.py"}


def name_of(path):
    return str(path.relative_to(SOURCE))


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(path, *, inside_functions=True):
    """Yield the full name of everything a file imports, and whether only for type hints."""

    def walk(node, for_types):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, for_types
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", for_types
        if isinstance(node, ast.FunctionDef) and not inside_functions:
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, for_types or is_type_checking(node))

    yield from walk(ast.parse(path.read_text()), False)


def module_of(path):
    return ".".join(("stdenoise", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def modules_used(path):
    """Modules of ours that a file imports when it is imported, each as the file that has the name."""
    for name, for_types in imports_of(path, inside_functions=False):
        if name.startswith("stdenoise.") and not for_types:
            yield name if name in MODULES else name.rpartition(".")[0]


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
    assert {room_of(path) for path in FILES} - {"__init__"} == set(FLOOR)


def test_no_file_lies_loose_at_the_top():
    assert {path.name for path in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in FLOOR], ids=name_of)
def test_rooms_import_from_lower_floors_only(path):
    own = room_of(path)
    wrong = [room for room in rooms_used(path) & set(FLOOR) if FLOOR[room] >= FLOOR[own]]
    assert not wrong, f"{own} on floor {FLOOR[own]} imports {wrong}"


def test_only_public_rooms_and_what_stands_on_them_import_io():
    for path in FILES:
        if "_io" in rooms_used(path):
            assert FLOOR[room_of(path)] >= PUBLIC, name_of(path)


def test_files_of_a_room_do_not_import_in_a_circle():
    uses = {module_of(path): {m for m in modules_used(path) if m in MODULES} for path in FILES}
    while uses:
        free = {module for module, used in uses.items() if not used & set(uses)}
        assert free, f"a circle among {sorted(uses)}"
        uses = {module: used for module, used in uses.items() if module not in free}


def test_no_two_private_files_have_one_name():
    names = [path.stem for path in FILES if path.stem.startswith("_") and not path.stem.startswith("__")]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


def test_only_the_command_line_imports_the_whole_package():
    for path in FILES:
        if any(name == "stdenoise" for name, _ in imports_of(path)):
            assert room_of(path) == "__main__"


@pytest.mark.parametrize("path", [path for path in FILES if FLOOR.get(room_of(path), PUBLIC) < PUBLIC], ids=name_of)
def test_only_io_sees_anndata_and_nothing_below_plots(path):
    allowed = {"anndata"} if room_of(path) == "_io" or name_of(path) in EXTERNAL else set()
    for name, for_types in imports_of(path):
        assert for_types or name.split(".")[0] not in {"anndata", "scanpy", "squidpy", "matplotlib"} - allowed


def test_the_ground_floor_needs_no_torch_at_import():
    for path in FILES:
        if room_of(path) == "_base":
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


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) != "__main__"], ids=name_of)
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


# They return something and write nothing.
READS = {"tl.cross_validate", "tl.train"}


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
    # What the stub names is there; the stub is what type checkers read.
    assert module.__all__ == sorted(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
