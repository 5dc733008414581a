import contextlib
import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import time
from unittest import mock

import anndata as ad
import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import sparse

import stdenoise as st
from stdenoise import __main__ as cli
from stdenoise._io import disk
from stdenoise._io.read import layers_of

SMALL = {"n_hidden": 8, "n_latent": 3, "n_epochs": 3, "lr": 0.01}
FAST = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture
def run():
    """Run a command as a user does: without the log handlers of pytest."""

    def invoke(*arguments):
        logger = logging.getLogger("stdenoise")
        level = logger.level
        try:
            with mock.patch.object(logging.root, "handlers", []):
                return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        finally:
            logger.setLevel(level)

    return invoke


@pytest.fixture
def tissue():
    """Counts and coordinates, without a graph."""
    return st.datasets.tissue(n_spots=61, n_genes=12)


@pytest.fixture
def section(tissue, tmp_path):
    path = tmp_path / "section.h5ad"
    tissue.write_h5ad(path)
    return path


@pytest.fixture
def denoised(run, tissue, tmp_path):
    """Write an AnnData, denoise it by a command that succeeds, and read the result; the last output is kept."""

    def denoise(*arguments, adata=tissue, out="out.h5ad"):
        adata.write_h5ad(tmp_path / "in.h5ad")
        result = run("denoise", tmp_path / "in.h5ad", tmp_path / out, *arguments)
        assert result.exit_code == 0, result.output
        denoise.stdout, denoise.stderr = result.stdout, result.stderr
        return disk.read(tmp_path / out)

    return denoise


def lines_of(text):
    return [line for line in text.splitlines() if line.strip()]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# denoise


@pytest.mark.parametrize(("suffix_in", "suffix_out"), [(".h5ad", ".zarr"), (".zarr", ".h5ad")])
@pytest.mark.usefixtures("exact_files")
def test_denoise_reads_both_formats_and_replaces_both(run, tissue, tmp_path, suffix_in, suffix_out):
    source, target = tmp_path / f"in{suffix_in}", tmp_path / f"out{suffix_out}"
    disk.write(tissue, source)
    disk.write(st.datasets.tissue(n_spots=5, n_genes=3), target)
    result = run("denoise", source, target, *FAST)
    assert result.exit_code == 0, result.output
    st.pp.spatial_graph(tissue)
    st.tl.denoise(tissue, **SMALL)
    back = disk.read(target)
    np.testing.assert_array_equal(back.layers["dusted_mean"], tissue.layers["dusted_mean"])
    np.testing.assert_array_equal(back.X.toarray(), tissue.X.toarray())
    assert names_in(tmp_path) == sorted([source.name, target.name])


def test_denoise_prints_a_summary(denoised, tmp_path):
    denoised(*FAST, "--seed", 5)
    summary = dict(line.split(maxsplit=1) for line in lines_of(denoised.stdout))
    assert list(summary) == [
        *("method", "data", "graph", "written", "loss", "training", "check", "time", "memory", "file")
    ]
    assert summary["method"] == "dusted, seed 5, cpu"
    assert summary["data"] == "61 spots x 12 genes, scale counts"
    assert summary["graph"] == "5.11 neighbours on average, 0 isolated and 0 coincident spots, 1 components"
    assert summary["written"].startswith("layers/dusted_mean, layers/dusted_dispersion, layers/dusted_dropout, obsm/X_")
    assert re.fullmatch(r"\d+\.\d{4} first, \d+\.\d{4} last, 3 epochs", summary["loss"])
    assert re.fullmatch(r"\d+\.\d s", summary["time"])
    assert summary["training"] == "all 3 epochs are over"
    assert re.match(r"effective rank \d", summary["check"])
    size = (tmp_path / "out.h5ad").stat().st_size / 1e6
    assert summary["file"] == f"{tmp_path / 'out.h5ad'}, {size:.1f} MB"


def test_the_summary_says_what_the_fast_schedule_gained(denoised):
    adata = denoised(*FAST[:4], "--set", "schedule=fast", "--set", "n_epochs=6")
    ending = adata.uns["dusted"]["training"]
    assert (ending["best_epoch"], ending["annealing_from"]) == (4, 4)
    assert f"{ending['held_out_explained']:.1%} of the gene means' held-out deviance explained" in denoised.stdout
    assert "back to epoch 4 after 4" in denoised.stdout


def test_values_in_a_file_are_rounded_to_two_tenths_of_a_percent(denoised):
    exact, rounded = denoised(*FAST, "--dtype", "float32"), denoised(*FAST)
    for name in ("dusted_mean", "dusted_dispersion", "dusted_dropout"):
        before, after = exact.layers[name], rounded.layers[name]
        assert after.dtype == np.float32
        assert 2**-12 < np.abs(after / before - 1).max() <= 2**-9
        # Nine significant bits: what is left of the others is zero.
        assert not (after.view(np.uint32) & 0x7FFF).any()
    np.testing.assert_array_equal(rounded.obsm["X_dusted"], exact.obsm["X_dusted"])
    half = denoised(*FAST, "--dtype", "float16", "--arrays", "dropout, latent")
    assert {name for name in layers_of(half) if "dusted" in name} == {"dusted_mean", "dusted_dropout"}
    assert half.layers["dusted_dropout"].dtype == np.float16
    assert "X_dusted" in half.obsm


def test_progress_and_log_go_to_standard_error(run, section, tmp_path):
    for verbose, flag, shown in (("-v", [], (True, True)), (None, ["--no-progress"], (False, False))):
        flags = [] if verbose is None else [verbose]
        result = run(*flags, "denoise", section, tmp_path / "out.h5ad", *FAST, *flag)
        for text, is_shown in zip(("3/3", "spatial graph: radius"), shown, strict=True):
            assert (text in result.stderr) == is_shown
            assert text not in result.stdout


def test_settings_are_read_as_what_they_look_like(denoised):
    for settings, expected in (
        (
            ["n_epochs=2", "lr=1e-3", "gene_attention=False", "likelihood=nb", "reduction='mean'"],
            {"n_epochs": 2, "lr": 1e-3, "gene_attention": False, "likelihood": "nb", "reduction": "mean"},
        ),
        (["preset=hocwta", "restore_best=True"], {"likelihood": "nb", "alpha": 1.0, "restore_best": True}),
    ):
        params = denoised(*FAST, *(part for text in settings for part in ("--set", text))).uns["dusted"]["params"]
        for name, value in expected.items():
            assert params[name] == value
            assert isinstance(params[name], bool | np.bool_) == isinstance(value, bool)


def test_genes_by_name_or_marked_in_the_file(denoised, tissue):
    command = ["--method", "gene_mean", "--genes"]
    back = denoised(*command, "gene7,gene1, gene10")
    assert "61 spots x 3 genes" in denoised.stdout
    assert list(st.get.denoised(back, "gene_mean").var_names) == ["gene1", "gene7", "gene10"]
    tissue.var["highly_variable"] = np.arange(12) < 4
    assert st.get.denoised(denoised(*command, "highly_variable"), "gene_mean").n_vars == 4


@pytest.mark.parametrize("layer", [None, "raw_counts"])
def test_highly_variable_genes_are_chosen_by_scanpy_among_those_with_counts(denoised, layer):
    import scanpy as sc

    adata = st.datasets.tissue(n_spots=200, n_genes=30)
    counts = 10 * adata.X.toarray()
    # The last five are rare.
    counts[:, -5:] = counts[:, -5:] > np.quantile(counts[:, -5:], 0.9, axis=0)
    adata.X = counts[:, ::-1].copy() if layer else counts
    adata.layers["raw_counts"] = counts
    options = ["--layer", layer] if layer else []
    back = denoised("--method", "gene_mean", "--n-top-genes", 8, *options, adata=adata)
    candidates = ad.AnnData(counts, var=adata.var)
    candidates = candidates[:, counts.sum(axis=0) > 100].copy()
    assert candidates.n_vars < 30
    sc.pp.highly_variable_genes(candidates, flavor="seurat_v3", n_top_genes=8)
    expected = list(candidates.var_names[candidates.var["highly_variable"]])
    assert list(st.get.denoised(back, "gene_mean").var_names) == expected
    assert list(back.var_names[back.var["highly_variable"]]) == expected


def test_the_graph_is_that_of_the_file_or_built_where_it_is_needed(denoised, tissue):
    near = ["--method", "neighbor_mean"]
    for radius, n_neighbors in (("120", 6), ("180", 12)):
        assert denoised(*near, "--radius", radius).obsp["spatial_connectivities"].sum(axis=1).max() == n_neighbors
    assert not denoised("--method", "gene_mean").obsp
    st.pp.spatial_graph(tissue, radius=180)
    assert denoised(*near).uns["spatial_neighbors"]["params"]["radius"] == 180
    assert "neighbours on average" in denoised.stdout
    denoised("--method", "gene_mean")
    assert "neighbours on average" not in denoised.stdout


def test_keys_and_libraries(denoised, tissue):
    tissue.obsm["centres"] = tissue.obsm["spatial"]
    tissue.obs["library"] = np.where(np.arange(61) % 2, "left", "right")
    keys = ["--spatial-key", "centres", "--graph-key", "near", "--radius", "auto"]
    back = denoised(*FAST, *keys, "--library-key", "library", "--key-added", "mine", "--method", "dusted")
    assert {"near_connectivities", "near_distances"} == set(back.obsp)
    edges = back.obsp["near_connectivities"].tocoo()
    assert not ((edges.row - edges.col) % 2).any()
    assert back.uns["near_neighbors"]["params"]["spatial_key"] == "centres"
    record = back.uns["mine"]
    assert (record["graph_key"], record["library_key"], record["spatial_key"]) == ("near", "library", "centres")
    assert "mine_mean" in back.layers


def test_coordinates_that_only_the_graph_is_built_from(run, denoised, tissue, tmp_path):
    tissue.obsm["centres"] = tissue.obsm["spatial"][::-1]
    options = ["--method", "neighbor_mean", "--spatial-key", "centres"]
    back = denoised(*options)
    assert back.uns["neighbor_mean"]["spatial_key"] == "centres"
    st.pp.spatial_graph(tissue, spatial_key="centres")
    assert (back.obsp["spatial_connectivities"] != tissue.obsp["spatial_connectivities"]).nnz == 0
    # A method that reads neither has no use for them.
    tissue.write_h5ad(tmp_path / "in.h5ad")
    result = run("denoise", tmp_path / "in.h5ad", tmp_path / "out.h5ad", "--method", "magic", *options[2:])
    assert result.exit_code == 2
    assert "spatial_key='centres' has no effect for magic" in result.stderr


def test_a_network_is_saved_and_applied(run, section, tmp_path):
    first, second, network = tmp_path / "first.h5ad", tmp_path / "second.zarr", tmp_path / "network.pt"
    small = [*FAST[:4], "--set", "n_epochs=2", "--method", "stagate"]
    assert run("denoise", section, first, *small, "--save-model", network).exit_code == 0
    result = run("denoise", section, second, "--model", network, "--key-added", "mine")
    assert result.exit_code == 0, result.output
    before, after = ad.read_h5ad(first), disk.read(second)
    np.testing.assert_array_equal(after.layers["mine_mean"], before.layers["stagate_mean"])
    np.testing.assert_array_equal(after.obsm["X_mine"], before.obsm["X_stagate"])
    assert "stagate, seed 0, cpu" in result.stdout
    assert names_in(tmp_path) == sorted([section.name, first.name, second.name, network.name])
    for options, fragment in (
        (["--method", "dusted"], "--method dusted, .* 'stagate'"),
        (["--set", "alpha=1", "--genes", "gene1"], "--set alpha, --genes have no effect"),
        (["--save-model", tmp_path / "b.pt"], "--save-model"),
    ):
        result = run("denoise", section, tmp_path / "third.h5ad", "--model", network, *options)
        assert result.exit_code == 2
        assert re.search(fragment, result.stderr)


# Bad input: one line of error, exit code 2, nothing written

BAD = [
    ("missing.h5ad out.h5ad", "there is no '.*missing.h5ad'"),
    ("section.h5ad out.csv", "'.csv'"),
    ("section.csv out.h5ad", "'.csv'"),
    ("section.h5ad section.h5ad", "IN 'section.h5ad' and OUT 'section.h5ad' are the same"),
    ("section.h5ad sub/../section.h5ad", "OUT 'sub/../section.h5ad' are the same"),
    ("section.h5ad nowhere/out.h5ad", "cannot write '.*out.h5ad': .*nowhere"),
    ("broken.h5ad out.h5ad", "broken.h5ad"),
    ("broken.zarr out.h5ad", "broken.zarr"),
    ("section.h5ad sub.h5ad", "sub.h5ad"),
    ("section.h5ad file.zarr", "file.zarr"),
    ("section.h5ad old.h5ad --method dustd", "'dustd'.* mean 'dusted'"),
    ("section.h5ad out.h5ad --set n_epochs", "--set 'n_epochs' is not of the form KEY=VALUE"),
    ("section.h5ad out.h5ad --set =3", "--set '=3'"),
    ("section.h5ad out.h5ad --set epochs=3", "'epochs'.* mean 'n_epochs'"),
    ("section.h5ad out.h5ad --set n_epochs=three", "n_epochs='three'"),
    ("section.h5ad out.h5ad --set copy=True", "copy"),
    ("section.h5ad out.h5ad --set lr=1e30", "the loss is nan"),
    ("section.h5ad out.h5ad --genes gene1 --n-top-genes 3", "--genes and --n-top-genes"),
    ("section.h5ad out.h5ad --genes gnee1", r"\['gnee1'\]"),
    ("section.h5ad out.h5ad --n-top-genes 13", "n_top_genes=13: only .* of 12"),
    ("section.h5ad out.h5ad --layer raw", "'raw' is not in adata.layers"),
    ("section.h5ad out.h5ad --radius wide", "radius='wide'"),
    ("section.h5ad out.h5ad --spatial-key xy", "'xy' is not in adata.obsm"),
    ("section.h5ad out.h5ad --library-key x", "'x' is not in adata.obs"),
    ("section.h5ad out.h5ad --graph-key x", "'x_connectivities' is not in adata.obsp"),
    ("section.h5ad out.h5ad --device gpu0", "device='gpu0'"),
    ("section.h5ad out.h5ad --seed -1", "seed .*not -1"),
    ("graph.h5ad out.h5ad --radius 180", "--radius 180 .*'spatial'"),
    ("graph.h5ad out.h5ad --library-key region", r"\d+ of 312 edges .*'region'"),
    ("section.h5ad out.zarr --memory much", "memory='much'"),
    ("section.h5ad out.h5ad --memory 100MB", r"dusted on 61 spots x 12 genes .* 0\.10 GB.*out="),
    ("section.h5ad out.zarr --memory 100MB", r"dusted on 61 spots x 12 genes .* 0\.10 GB; give more memory"),
    ("section.h5ad out.zarr --devices 0", "devices .*not 0"),
    ("section.h5ad out.zarr --strategy x --method dca", r"\['strategy'\] have no effect for dca"),
    ("section.h5ad out.zarr --precision 16", "precision='16'"),
    ("section.h5ad out.zarr --dtype float64", "dtype='float64'"),
    ("section.h5ad out.zarr --arrays gate", "arrays='gate'"),
    ("section.h5ad out.zarr --checkpoint a.pt --checkpoint-minutes -1", "minutes .*not -1"),
    ("section.h5ad out.zarr --resume", "--resume.* --checkpoint"),
    ("section.h5ad out.zarr --checkpoint nowhere/a.pt", "checkpoint='nowhere/a.pt'"),
    ("section.h5ad out.zarr --checkpoint text.pt --resume", "cannot replace 'text.pt'"),
    ("section.h5ad out.zarr --save-model nowhere/a.pt", "save_model='nowhere/a.pt'"),
    ("section.h5ad out.zarr --model missing.pt", "missing.pt"),
    ("section.h5ad out.zarr --model text.pt", "'text.pt' is damaged or no model"),
    ("section.h5ad out.zarr --method gene_mean --save-model a.pt", "--save-model .* gene_mean"),
    ("section.h5ad out.zarr --method gene_mean --memory 4GB", r"\['memory'\] .* gene_mean; .*'dca'"),
    ("section.h5ad out.zarr --method gene_mean --graph-key x", "'x_connectivities' is not in adata.obsp"),
    ("section.h5ad out.zarr --method gene_mean --spatial-key x", "'x' is not in adata.obsm"),
    ("section.h5ad out.zarr --method gene_mean --features-key image", "'image' is not in adata.obsm"),
    ("section.h5ad out.zarr --method gene_mean --library-key x", "'x' is not in adata.obs"),
    ("section.h5ad out.zarr --method gene_mean --arrays dropout", r"arrays='dropout' .*\['mean'\]"),
    ("section.h5ad out.h5ad --method gene_mean --radius 120", "--radius 120 .* gene_mean"),
]


def test_bad_input_is_one_line_and_exit_code_2(run, section, tissue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    st.pp.spatial_graph(tissue, radius=120)
    tissue.write_h5ad("graph.h5ad")
    disk.write(tissue, tmp_path / "old.h5ad")
    for name in ("broken.h5ad", "file.zarr", "text.pt"):
        (tmp_path / name).write_text("something else")
    for folder in ("sub", "sub.h5ad", "broken.zarr"):
        (tmp_path / folder).mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    for command, fragment in BAD:
        source, target, *options = command.split()
        is_dusted = not {"--method", "--model"} & set(options)
        result = run("denoise", source, target, "--no-progress", *(FAST if is_dusted else []), *options)
        assert (result.exit_code, result.stdout) == (2, ""), command
        # A training that diverges says first that it goes back.
        (line,) = [line for line in lines_of(result.stderr) if not line.startswith("dusted: the loss is nan")]
        assert re.match(f"Error: .*{fragment}", line), command
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before, command
    for usage in (["denoise"], ["denoise", "a.h5ad", "b.h5ad", "--n-top-genes", "0"], ["denoize"]):
        assert run(*usage).exit_code == 2


def test_fractions_are_taken_where_counts_are_not_checked(run, denoised, tissue, tmp_path):
    tissue.X = 0.5 * tissue.X
    denoised("--method", "gene_mean", "--no-check-counts")
    result = run("denoise", tmp_path / "in.h5ad", tmp_path / "out.h5ad", "--method", "gene_mean")
    assert result.exit_code == 2
    assert "log-transformed" in result.stderr


# The other commands


def test_methods_lists_every_method(run):
    lines = lines_of(run("methods").stdout)
    assert [line for line in lines if not line.startswith(" ")] == list(st.methods.table().index)
    labels = [line.split()[0] for line in lines[1:8]]
    assert labels == ["summary", "needs", "scale", "writes", "size", "reference", "licence"]


def test_demo_comes_nearer_to_the_truth_and_leaves_its_files(run, tmp_path):
    folder = tmp_path / "new" / "demo"
    result = run("demo", "--n-epochs", 15, "--folder", folder)
    assert result.exit_code == 0, result.output
    before, after = (float(re.search(rf"{name}\s+(\d+\.\d+)", result.stdout)[1]) for name in ("raw counts", "denoised"))
    assert after < before
    assert names_in(folder) == ["demo.h5ad", "demo.png"]
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    adata = ad.read_h5ad(folder / "demo.h5ad")
    truth, mean, counts = adata.layers["true_mean"], adata.layers["dusted_mean"], adata.X.toarray()
    logs = [np.log1p(1e4 * x / x.sum(axis=1, keepdims=True)) for x in (counts, mean, truth)]
    assert [before, after] == pytest.approx([((x - logs[2]) ** 2).mean() for x in logs[:2]], abs=1e-3)


def test_help_and_version(run):
    for arguments, text in ((["--help"], "Usage"), (["-h"], "Usage"), (["--version"], st.__version__)):
        result = run(*arguments)
        assert result.exit_code == 0
        assert text in result.stdout


def test_options_and_their_defaults_are_those_of_the_function(run):
    words = set(re.findall(r"--[a-z-]+", run("denoise", "--help").stdout))
    assert words >= {
        "--checkpoint-minutes",
        "--resume",
        "--save-model",
        "--model",
        "--n-top-genes",
        "--radius",
        "--set",
    }
    parameters = inspect.signature(st.tl.denoise).parameters | inspect.signature(st.Compute).parameters
    # Python has the AnnData at hand; parameters of the method are --set.
    arguments = {f"--{name.replace('_', '-')}" for name in parameters}
    assert arguments - words == {"--adata", "--copy", "--compute", "--out", "--params"}
    context = click.Context(cli.denoise)
    defaults = {option.name: option.get_default(context) for option in cli.denoise.params}
    for name in ("memory", "devices", "strategy", "precision", "threads", "dtype", "seed", "device"):
        # What click says where there is none.
        default = None if "UNSET" in repr(defaults[name]) else defaults[name]
        assert default == parameters[name].default


# Interruptions and processes


def test_an_interruption_is_exit_code_130(run, section, tmp_path, monkeypatch):
    monkeypatch.setattr(st.methods.DUSTED, "train", mock.Mock(side_effect=KeyboardInterrupt))
    result = run("denoise", section, tmp_path / "out.zarr", *FAST)
    assert (result.exit_code, result.stdout, lines_of(result.stderr)) == (130, "", ["stopped"])
    assert names_in(tmp_path) == [section.name]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_interrupted_run_goes_on(section, tissue, tmp_path):
    slow = (
        "import time\n"
        "from stdenoise.methods.dusted.module import DUSTEDModule\n"
        "from stdenoise.__main__ import main\n"
        "loss = DUSTEDModule.loss\n"
        "DUSTEDModule.loss = lambda *args: time.sleep(0.05) or loss(*args)\n"
        "main()\n"
    )
    params = {**SMALL, "n_epochs": 60, "schedule": "paper"}
    settings = [part for name, value in params.items() for part in ("--set", f"{name}={value}")]
    saving = ["--checkpoint", "run.pt", "--checkpoint-minutes", "0", "--resume"]
    command = ["denoise", section.name, "out.zarr", *settings, "--no-progress", *saving, "--dtype", "float32"]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    *_, line = lines_of(errors)  # after warnings of old libraries
    assert line.startswith("stopped by SIGINT; 'run.pt' is saved")
    assert printed == ""
    assert names_in(tmp_path) == ["run.pt", section.name]
    with contextlib.chdir(tmp_path):
        result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 0, result.output
    st.pp.spatial_graph(tissue)
    st.tl.denoise(tissue, **params)
    after = ad.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_allclose(after.layers["dusted_mean"], tissue.layers["dusted_mean"], rtol=1e-3)


def test_the_summary_comes_from_the_first_process(run, section, tmp_path, monkeypatch):
    for rank, speaks in (("0", True), ("1", False)):
        for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        # No other process is there to be joined.
        result = run("denoise", section, tmp_path / f"out{rank}.h5ad", "--method", "gene_mean")
        assert result.exit_code == 0, result.output
        assert ("method" in result.stdout) == speaks
        assert (tmp_path / f"out{rank}.h5ad").exists() == speaks


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX signals")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize(
    "phase", ["_io.section.open_section", "_io.disk.write", "_io.source.Source.copy_to", "_io.sorted.sort_counts"]
)
def test_a_signal_in_any_phase_ends_with_130_and_leaves_nothing(tmp_path, section, number, phase):
    """The process sends the signal to itself in the middle of what it does."""
    owner, name = f"stdenoise.{phase}".rsplit(".", 1)
    code = (
        "import os, pkgutil, signal, sys\n"
        "import stdenoise.__main__ as cli, stdenoise.tl._denoise, stdenoise._io.section, stdenoise._io.sink\n"
        f"owner = pkgutil.resolve_name({owner!r})\n"
        f"work = getattr(owner, {name!r})\n"
        "def stopped(*args, **kwargs):\n"
        f"    os.kill(os.getpid(), signal.{number})\n"
        "    return work(*args, **kwargs)\n"
        "import torch, stdenoise.tl._open_run\n"
        "from stdenoise.tl._plan import Plan\n"
        "plan = lambda *_, may_stream, **__: Plan(70, may_stream, torch.device('cpu'), {}, 1.0)\n"
        "stdenoise.tl._open_run.make_plan = plan\n"
        "for module in [owner, *filter(None, sys.modules.values())]:\n"
        f"    if getattr(module, {name!r}, None) is work: setattr(module, {name!r}, stopped)\n"
        "cli.main(prog_name='stdenoise')\n"
    )
    streams = phase.rsplit(".", 1)[1] in ("copy_to", "sort_counts")
    out = "out.zarr" if streams else "out.h5ad"
    before = names_in(tmp_path)
    options = ["--method", "neighbor_mean" if streams else "raw", "--no-progress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, "denoise", section.name, out, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert lines_of(done.stderr)[-1] in (f"stopped by {number}", "stopped")
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("out", ["out.h5ad", "out.zarr"])
def test_counts_that_are_stored_by_columns(run, tissue, tmp_path, out):
    tissue.X = sparse.csc_matrix(tissue.X)
    tissue.write_h5ad(tmp_path / "columns.h5ad")
    done = run("denoise", tmp_path / "columns.h5ad", tmp_path / out, "--method", "raw", "--no-progress")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "raw_mean" in done.stdout


def test_a_benchmark_without_any_result_fails(run, tmp_path, monkeypatch):
    (tmp_path / "b.toml").write_text(
        'methods = ["raw"]\nmetrics = ["morans_i"]\n[[datasets]]\nname = "t"\nkind = "tissue"\nn_spots = 40\nn_genes = 5\n'
    )
    monkeypatch.setattr("stdenoise.benchmark.run", lambda *_, **__: pd.DataFrame({"dataset": [], "method": []}))
    monkeypatch.setattr("stdenoise.benchmark.report", lambda home: tmp_path / "report.html")
    done = run("benchmark", tmp_path / "b.toml")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no unit of " in done.stderr
