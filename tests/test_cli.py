import contextlib
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
import pytest
from click.testing import CliRunner

import stdenoise as st
from stdenoise import __main__ as cli
from stdenoise._io import disk

FAST = ["--set", "n_hidden=8", "--set", "n_latent=3", "--set", "n_epochs=3", "--set", "lr=0.01"]


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
def section(tmp_path):
    """A file with counts and coordinates, without a graph."""
    path = tmp_path / "section.h5ad"
    st.datasets.tissue(n_spots=61, n_genes=12).write_h5ad(path)
    return path


@pytest.fixture
def deep_section(tmp_path):
    """A file with enough counts for a choice of highly variable genes; its last five genes are rare."""
    adata = st.datasets.tissue(n_spots=200, n_genes=30)
    counts = 10 * adata.X.toarray()
    counts[:, -5:] = counts[:, -5:] > np.quantile(counts[:, -5:], 0.9, axis=0)
    adata.X = counts
    adata.layers["raw_counts"] = counts
    path = tmp_path / "deep.h5ad"
    adata.write_h5ad(path)
    return path


def lines_of(text):
    return [line for line in text.splitlines() if line.strip()]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# denoise


@pytest.mark.parametrize("suffix_in", [".h5ad", ".zarr"])
@pytest.mark.parametrize("suffix_out", [".h5ad", ".zarr"])
@pytest.mark.usefixtures("exact_files")
def test_denoise_reads_and_writes_both_formats(run, tmp_path, suffix_in, suffix_out):
    source, target = tmp_path / f"in{suffix_in}", tmp_path / f"out{suffix_out}"
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    disk.write(adata, source)
    result = run("denoise", source, target, *FAST)
    assert result.exit_code == 0, result.output
    st.pp.spatial_graph(adata)
    st.tl.denoise(adata, n_hidden=8, n_latent=3, n_epochs=3, lr=0.01)
    back = disk.read(target)
    np.testing.assert_array_equal(back.layers["dusted_mean"], adata.layers["dusted_mean"])
    np.testing.assert_array_equal(back.X.toarray(), adata.X.toarray())
    assert names_in(tmp_path) == sorted([source.name, target.name])


def test_denoise_prints_a_summary(run, section, tmp_path):
    result = run("denoise", section, tmp_path / "out.h5ad", *FAST, "--seed", 5)
    summary = dict(line.split(maxsplit=1) for line in lines_of(result.stdout))
    assert list(summary) == [
        *("method", "data", "graph", "written", "loss", "training", "check", "time", "memory", "file")
    ]
    assert summary["method"] == "dusted, seed 5, cpu"
    assert summary["data"] == "61 spots x 12 genes, scale counts"
    assert summary["graph"] == "5.11 neighbours on average, 0 isolated and 0 coincident spots, 1 components"
    assert summary["written"].startswith(
        "layers/dusted_mean, layers/dusted_dispersion, layers/dusted_dropout, obsm/X_dust"
    )
    assert re.fullmatch(r"\d+\.\d{4} first, \d+\.\d{4} last, 3 epochs", summary["loss"])
    assert re.fullmatch(r"\d+\.\d s", summary["time"])
    assert summary["training"] == "all 3 epochs are over"
    assert re.match(r"effective rank \d", summary["check"])
    size = (tmp_path / "out.h5ad").stat().st_size / 1e6
    assert summary["file"] == f"{tmp_path / 'out.h5ad'}, {size:.1f} MB"


def test_the_summary_says_what_the_fast_schedule_gained(run, section, tmp_path):
    settings = ["--set", "schedule=fast", "--set", "n_hidden=8", "--set", "n_latent=3", "--set", "n_epochs=6"]
    result = run("denoise", section, tmp_path / "out.h5ad", *settings)
    summary = dict(line.split(maxsplit=1) for line in lines_of(result.stdout))
    ending = ad.read_h5ad(tmp_path / "out.h5ad").uns["dusted"]["training"]
    assert (ending["best_epoch"], ending["annealing_from"]) == (4, 4)
    assert f"{ending['held_out_explained']:.1%} of the gene means' held-out deviance explained" in summary["training"]
    assert "back to epoch 4 after 4" in summary["training"]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_values_in_a_file_are_rounded_to_two_tenths_of_a_percent(run, section, tmp_path, suffix):
    exact, rounded = tmp_path / f"exact{suffix}", tmp_path / f"rounded{suffix}"
    assert run("denoise", section, exact, *FAST, "--dtype", "float32").exit_code == 0
    assert run("denoise", section, rounded, *FAST).exit_code == 0
    for name in ("mean", "dispersion", "dropout"):
        before, after = (disk.read(path).layers[f"dusted_{name}"] for path in (exact, rounded))
        assert after.dtype == np.float32
        error = np.abs(after / before - 1).max()
        assert 2**-12 < error <= 2**-9
        # Nine significant bits: what is left of the others is zero.
        assert not (after.view(np.uint32) & 0x7FFF).any()
    np.testing.assert_array_equal(disk.read(rounded).obsm["X_dusted"], disk.read(exact).obsm["X_dusted"])


@pytest.mark.parametrize(("flag", "shown"), [([], True), (["--progress"], True), (["--no-progress"], False)])
def test_progress_goes_to_standard_error(run, section, tmp_path, flag, shown):
    result = run("denoise", section, tmp_path / "out.h5ad", *FAST, *flag)
    assert ("3/3" in result.stderr) == shown
    assert "3/3" not in result.stdout


@pytest.mark.parametrize(("flag", "shown"), [([], False), (["-v"], True), (["--verbose"], True)])
def test_the_log_goes_to_standard_error_when_asked_for(run, section, tmp_path, flag, shown):
    result = run(*flag, "denoise", section, tmp_path / "out.h5ad", *FAST)
    assert ("spatial graph: radius" in result.stderr) == shown
    assert "spatial graph: radius" not in result.stdout


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["n_epochs=2"], {"n_epochs": 2}),
        (["lr=1e-3", "alpha=0.5"], {"lr": 1e-3, "alpha": 0.5}),
        (["gene_attention=False", "restore_best=True"], {"gene_attention": False, "restore_best": True}),
        (["likelihood=nb", "reduction='mean'"], {"likelihood": "nb", "reduction": "mean"}),
        (["preset=hocwta"], {"likelihood": "nb", "alpha": 1.0}),
    ],
    ids=str,
)
def test_settings_are_read_as_what_they_look_like(run, section, tmp_path, settings, expected):
    options = [part for setting in settings for part in ("--set", setting)]
    result = run("denoise", section, tmp_path / "out.h5ad", *FAST, *options)
    assert result.exit_code == 0, result.output
    params = ad.read_h5ad(tmp_path / "out.h5ad").uns["dusted"]["params"]
    for name, value in expected.items():
        assert params[name] == value
        assert isinstance(params[name], bool | np.bool_) == isinstance(value, bool)


def test_genes_by_name(run, section, tmp_path):
    result = run("denoise", section, tmp_path / "out.h5ad", *FAST, "--genes", "gene7,gene1")
    assert "61 spots x 2 genes" in result.stdout
    assert list(st.get.denoised(ad.read_h5ad(tmp_path / "out.h5ad")).var_names) == ["gene1", "gene7"]


def test_genes_marked_in_the_file(run, tmp_path):
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    adata.var["highly_variable"] = np.arange(12) < 4
    adata.write_h5ad(tmp_path / "in.h5ad")
    run("denoise", tmp_path / "in.h5ad", tmp_path / "out.h5ad", *FAST, "--genes", "highly_variable")
    assert st.get.denoised(ad.read_h5ad(tmp_path / "out.h5ad")).n_vars == 4


@pytest.mark.parametrize("layer", [None, "raw_counts"])
def test_highly_variable_genes_are_chosen_by_scanpy_among_those_with_counts(run, deep_section, tmp_path, layer):
    import scanpy as sc

    adata = ad.read_h5ad(deep_section)
    options = ["--n-top-genes", 8]
    if layer:
        options += ["--layer", layer]
        adata.X = adata.X[:, ::-1].copy()
        adata.write_h5ad(deep_section)
    result = run("denoise", deep_section, tmp_path / "out.h5ad", *FAST, *options)
    assert result.exit_code == 0, result.output
    candidates = ad.AnnData(ad.read_h5ad(deep_section).layers["raw_counts"], var=adata.var)
    candidates = candidates[:, candidates.X.sum(axis=0) > 100].copy()
    assert candidates.n_vars < 30
    sc.pp.highly_variable_genes(candidates, flavor="seurat_v3", n_top_genes=8)
    expected = candidates.var_names[candidates.var["highly_variable"]]
    back = ad.read_h5ad(tmp_path / "out.h5ad")
    assert list(st.get.denoised(back).var_names) == list(expected)
    assert list(back.var_names[back.var["highly_variable"]]) == list(expected)


def test_a_graph_in_the_file_is_used(run, tmp_path):
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    st.pp.spatial_graph(adata, radius=180)
    adata.write_h5ad(tmp_path / "in.h5ad")
    run("denoise", tmp_path / "in.h5ad", tmp_path / "out.h5ad", *FAST)
    assert ad.read_h5ad(tmp_path / "out.h5ad").uns["spatial_neighbors"]["params"]["radius"] == 180


def test_no_graph_is_built_where_none_is_needed(run, section, tmp_path):
    run("denoise", section, tmp_path / "out.h5ad", "--method", "poisson_factorization", "--set", "rank=2")
    assert not ad.read_h5ad(tmp_path / "out.h5ad").obsp
    result = run("denoise", section, tmp_path / "no.h5ad", "--method", "gene_mean", "--radius", "120")
    assert "--radius 120 has no effect: gene_mean reads no spatial graph" in result.stderr


def test_image_features_where_no_method_looks_at_them(run, section, tmp_path):
    options = ["--method", "gene_mean", "--features-key", "image"]
    result = run("denoise", section, tmp_path / "no.h5ad", *options)
    assert "'image' is not in adata.obsm" in result.stderr


@pytest.mark.parametrize(("radius", "n_neighbors"), [("120", 6), ("180", 12)])
def test_radius_of_the_graph(run, section, tmp_path, radius, n_neighbors):
    run("denoise", section, tmp_path / "out.h5ad", *FAST, "--radius", radius)
    graph = ad.read_h5ad(tmp_path / "out.h5ad").obsp["spatial_connectivities"]
    assert graph.sum(axis=1).max() == n_neighbors


def test_a_radius_beside_a_graph_in_the_file_is_not_ignored(run, tmp_path):
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    st.pp.spatial_graph(adata, radius=120)
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run("denoise", tmp_path / "in.h5ad", tmp_path / "out.h5ad", *FAST, "--radius", "180")
    assert result.exit_code == 2
    assert "radius" in result.stderr


def test_keys_and_libraries(run, tmp_path):
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    adata.obsm["centres"] = adata.obsm["spatial"]
    adata.obs["library"] = np.where(np.arange(61) % 2, "left", "right")
    adata.write_h5ad(tmp_path / "in.h5ad")
    keys = ["--spatial-key", "centres", "--graph-key", "near", "--radius", "auto"]
    keys += ["--library-key", "library", "--key-added", "mine"]
    result = run("denoise", tmp_path / "in.h5ad", tmp_path / "out.h5ad", *FAST, *keys, "--method", "dusted")
    assert result.exit_code == 0, result.output
    back = ad.read_h5ad(tmp_path / "out.h5ad")
    assert {"near_connectivities", "near_distances"} == set(back.obsp)
    assert back.uns["near_neighbors"]["params"]["spatial_key"] == "centres"
    record = back.uns["mine"]
    assert (record["graph_key"], record["library_key"], record["spatial_key"]) == ("near", "library", "centres")
    assert "mine_mean" in back.layers


def test_coordinates_that_only_the_graph_is_built_from(run, tmp_path):
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    adata.obsm["centres"] = adata.obsm["spatial"][::-1]
    adata.write_h5ad(tmp_path / "in.h5ad")
    command = ["denoise", tmp_path / "in.h5ad", tmp_path / "out.h5ad", "--method", "neighbor_mean"]
    result = run(*command, "--spatial-key", "centres")
    assert result.exit_code == 0, result.output
    back = ad.read_h5ad(tmp_path / "out.h5ad")
    assert back.uns["neighbor_mean"]["spatial_key"] == ""
    st.pp.spatial_graph(adata, spatial_key="centres")
    assert (back.obsp["spatial_connectivities"] != adata.obsp["spatial_connectivities"]).nnz == 0
    # With a graph in the file, nobody reads them.
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run(*command, "--spatial-key", "centres")
    assert result.exit_code == 2
    assert "spatial_key='centres' has no effect for neighbor_mean" in result.stderr


def test_the_graph_of_a_method_that_reads_none_is_not_in_the_summary(run, tmp_path):
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    st.pp.spatial_graph(adata)
    adata.write_h5ad(tmp_path / "in.h5ad")
    for method, shown in (("gene_mean", False), ("neighbor_mean", True)):
        result = run("denoise", tmp_path / "in.h5ad", tmp_path / "out.h5ad", "--method", method)
        assert ("neighbours on average" in result.stdout) == shown


def test_the_method_is_that_of_the_model(run, section, tmp_path):
    small = [*FAST[:4], "--set", "n_epochs=2"]
    model = tmp_path / "network.pt"
    result = run("denoise", section, tmp_path / "a.h5ad", "--method", "stagate", *small, "--save-model", model)
    assert result.exit_code == 0, result.output
    assert run("denoise", section, tmp_path / "b.h5ad", "--model", model).exit_code == 0
    assert "stagate_mean" in ad.read_h5ad(tmp_path / "b.h5ad").layers
    result = run("denoise", section, tmp_path / "c.h5ad", "--model", model, "--method", "dusted")
    assert result.exit_code == 2
    assert re.search("--method dusted, but --model .* is a network of 'stagate'", result.stderr)


def test_out_is_replaced(run, section, tmp_path):
    for suffix in (".h5ad", ".zarr"):
        target = tmp_path / f"out{suffix}"
        disk.write(st.datasets.tissue(n_spots=5, n_genes=3), target)
        assert run("denoise", section, target, *FAST).exit_code == 0
        assert disk.read(target).shape == (61, 12)


# Bad input: one line of error, exit code 2, nothing written

BAD = [
    (["missing.h5ad", "out.h5ad"], "there is no '.*missing.h5ad'"),
    (["section.h5ad", "out.csv"], "file format='.csv' is not valid; choose from"),
    (["section.csv", "out.h5ad"], "file format='.csv' is not valid"),
    (
        ["section.h5ad", "section.h5ad"],
        "IN 'section.h5ad' and OUT 'section.h5ad' are the same; choose another path for OUT",
    ),
    (["section.h5ad", "sub/../section.h5ad"], "IN 'section.h5ad' and OUT 'sub/../section.h5ad' are the same"),
    (["section.h5ad", "nowhere/out.h5ad"], "cannot write '.*out.h5ad': there is no folder '.*nowhere'"),
    (["broken.h5ad", "out.h5ad"], "broken.h5ad"),
    (["broken.zarr", "out.h5ad"], "broken.zarr"),
    (["section.h5ad", "sub.h5ad"], "sub.h5ad"),
    (["section.h5ad", "file.zarr"], "file.zarr"),
    (["section.h5ad", "out.h5ad", "--method", "dustd"], "method='dustd' is not valid.* Did you mean 'dusted'"),
    (["section.h5ad", "out.h5ad", "--set", "n_epochs"], "--set 'n_epochs' is not of the form KEY=VALUE"),
    (["section.h5ad", "out.h5ad", "--set", "=3"], "--set '=3' is not of the form KEY=VALUE"),
    (["section.h5ad", "out.h5ad", "--set", "epochs=3"], "dusted has no parameter 'epochs'.* Did you mean 'n_epochs'"),
    (["section.h5ad", "out.h5ad", "--set", "n_epochs=three"], "n_epochs must be an integer >= 1, not 'three'"),
    (["section.h5ad", "out.h5ad", "--set", "likelihood=zip"], "likelihood='zip' is not valid"),
    (["section.h5ad", "out.h5ad", "--set", "copy=True"], "copy"),
    (["section.h5ad", "out.h5ad", "--set", "seed=3"], "seed"),
    (["section.h5ad", "out.h5ad", "--genes", "gene1", "--n-top-genes", "3"], "--genes and --n-top-genes exclude each"),
    (["section.h5ad", "out.h5ad", "--set", "lr=1e30"], "the loss is nan"),
    (["section.h5ad", "out.h5ad", "--genes", "gnee1"], r"\['gnee1'\]"),
    (["section.h5ad", "out.h5ad", "--n-top-genes", "13"], "n_top_genes=13: only .* of 12 genes have more than 100"),
    (["section.h5ad", "out.h5ad", "--layer", "raw"], "'raw' is not in adata.layers, which has 'true_mean'"),
    (["section.h5ad", "out.h5ad", "--radius", "wide"], "radius='wide' is not valid; choose 'auto' or a number above 0"),
    (["section.h5ad", "out.h5ad", "--spatial-key", "xy"], "'xy' is not in adata.obsm"),
    (["section.h5ad", "out.h5ad", "--library-key", "x"], "'x' is not in adata.obs"),
    (["section.h5ad", "out.h5ad", "--graph-key", "x"], "'x_connectivities' is not in adata.obsp"),
    (["section.h5ad", "out.h5ad", "--device", "gpu0"], "device='gpu0' is not available"),
    (["section.h5ad", "out.h5ad", "--seed", "-1"], "seed must be an integer >= 0, not -1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_one_line_and_exit_code_2(run, section, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.h5ad").write_text("no hdf5")
    for folder in ("sub", "sub.h5ad", "broken.zarr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file.zarr").write_text("no folder")
    before, content = names_in(tmp_path), section.read_bytes()
    result = run("denoise", *arguments[:2], "--no-progress", *FAST, *arguments[2:])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert names_in(tmp_path) == before
    assert section.read_bytes() == content
    # A training that diverges says first that it goes back.
    (line,) = [line for line in lines_of(result.stderr) if not line.startswith("dusted: the loss is nan")]
    assert re.match(f"Error: .*{message}", line)


def test_a_graph_across_libraries_is_one_line(run, tmp_path):
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    st.pp.spatial_graph(adata, radius=120)
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run("denoise", tmp_path / "in.h5ad", tmp_path / "out.h5ad", *FAST, "--library-key", "region")
    assert result.exit_code == 2
    assert re.match(r"Error: \d+ of 312 edges join spots of different 'region'", result.stderr)
    assert names_in(tmp_path) == ["in.h5ad"]


def test_an_unwritable_folder_is_found_before_any_work(run, section, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    monkeypatch.setattr(disk, "read", lambda *_: pytest.fail("work was done"))
    result = run("denoise", section, tmp_path / "out.h5ad", *FAST)
    assert result.exit_code == 2
    (line,) = lines_of(result.stderr)
    assert re.match("Error: cannot write '.*out.h5ad': the folder '.*' is not writable", line)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_an_interrupted_write_leaves_the_old_file(run, section, tmp_path, monkeypatch, suffix):
    target = tmp_path / f"out{suffix}"
    disk.write(st.datasets.tissue(n_spots=5, n_genes=3), target)

    def break_off(adata, path, **_):
        path.write_text("half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ad.AnnData, f"write_{suffix[1:]}", break_off)
        result = run("denoise", section, target, "--no-progress", *FAST)
    assert result.exit_code == 2
    assert "no space left on device" in result.stderr
    assert names_in(tmp_path) == sorted([section.name, target.name])
    assert disk.read(target).shape == (5, 3)


def test_a_failed_run_leaves_the_old_file(run, section, tmp_path):
    target = tmp_path / "out.h5ad"
    target.write_text("old")
    assert run("denoise", section, target, *FAST, "--method", "none").exit_code == 2
    assert target.read_text() == "old"


def test_exit_codes_of_the_program(section, tmp_path):
    command = [sys.executable, "-c", "from stdenoise.__main__ import main; main()", "denoise"]
    bad = subprocess.run([*command, section, tmp_path / "out.csv"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout, len(lines_of(bad.stderr))) == (2, "", 1)
    good = subprocess.run([*command, section, tmp_path / "out.h5ad", *FAST], capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    assert lines_of(good.stdout)[0].startswith("method")


# The other commands


def test_methods_lists_every_method(run):
    result = run("methods")
    lines = lines_of(result.stdout)
    assert [line for line in lines if not line.startswith(" ")] == list(st.methods.table().index)
    labels = [line.split()[0] for line in lines[1:8]]
    assert labels == ["summary", "needs", "scale", "writes", "size", "reference", "licence"]


def test_demo_comes_nearer_to_the_truth_and_leaves_its_files(run, tmp_path):
    folder = tmp_path / "new" / "demo"
    result = run("demo", "--n-epochs", 30, "--folder", folder)
    assert result.exit_code == 0, result.output
    before, after = (float(re.search(rf"{name}\s+(\d+\.\d+)", result.stdout)[1]) for name in ("raw counts", "denoised"))
    assert after < before
    assert names_in(folder) == ["demo.h5ad", "demo.png"]
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    adata = ad.read_h5ad(folder / "demo.h5ad")
    truth, mean, counts = adata.layers["true_mean"], adata.layers["dusted_mean"], adata.X.toarray()
    logs = [np.log1p(1e4 * x / x.sum(axis=1, keepdims=True)) for x in (counts, mean, truth)]
    assert [before, after] == pytest.approx([((x - logs[2]) ** 2).mean() for x in logs[:2]], abs=1e-3)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["denoise", "--help"], ["--version"]])
def test_help_and_version(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert ("Usage" in result.stdout) or (st.__version__ in result.stdout)


@pytest.mark.parametrize("arguments", [["denoise"], ["denoise", "a.h5ad", "b.h5ad", "--n-top-genes", "0"], ["denoize"]])
def test_wrong_usage_is_exit_code_2(run, arguments):
    assert run(*arguments).exit_code == 2


# Networks: memory, devices, files

NETWORK_OPTIONS = {
    "--memory",
    "--arrays",
    "--dtype",
    "--devices",
    "--strategy",
    "--precision",
    "--checkpoint",
    "--checkpoint-minutes",
    "--resume",
    "--save-model",
    "--model",
}


def test_options_are_the_arguments_of_the_function(run):
    import inspect

    words = set(re.findall(r"--[a-z-]+", run("denoise", "--help").stdout))
    assert words >= NETWORK_OPTIONS
    names = [*inspect.signature(st.tl.denoise).parameters, *inspect.signature(st.Compute).parameters]
    arguments = {f"--{name.replace('_', '-')}" for name in names}
    # Python has the AnnData at hand; parameters of the method are --set.
    assert arguments - words == {"--adata", "--copy", "--compute", "--out", "--params"}


def test_defaults_are_those_of_the_function():
    import inspect

    parameters = inspect.signature(st.tl.denoise).parameters | inspect.signature(st.Compute).parameters
    context = click.Context(cli.denoise)
    defaults = {option.name: option.get_default(context) for option in cli.denoise.params}
    # What click says where there is none.
    defaults = {name: None if "UNSET" in repr(value) else value for name, value in defaults.items()}
    for name in ("memory", "devices", "strategy", "precision", "threads", "dtype", "seed", "device"):
        assert defaults[name] == parameters[name].default


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_network_is_saved_and_applied(run, section, tmp_path, suffix):
    first, second, network = tmp_path / "first.h5ad", tmp_path / f"second{suffix}", tmp_path / "network.pt"
    assert run("denoise", section, first, *FAST, "--save-model", network).exit_code == 0
    result = run("denoise", section, second, "--model", network, "--key-added", "mine", "--arrays", "dropout,latent")
    assert result.exit_code == 0, result.output
    before, after = ad.read_h5ad(first), disk.read(second)
    np.testing.assert_array_equal(after.layers["mine_mean"], before.layers["dusted_mean"])
    assert {name for name in after.layers if "mine" in name} == {"mine_mean", "mine_dropout"}
    assert "dusted, seed 0, cpu" in result.stdout
    assert names_in(tmp_path) == sorted([section.name, first.name, second.name, network.name])


def test_half_precision_on_disk(run, section, tmp_path):
    assert run("denoise", section, tmp_path / "out.zarr", *FAST, "--dtype", "float16").exit_code == 0
    assert ad.read_zarr(tmp_path / "out.zarr").layers["dusted_dropout"].dtype == np.float16


@pytest.mark.parametrize("stop", [KeyboardInterrupt, KeyboardInterrupt("stopped; 'a.pt' is saved")])
def test_an_interruption_is_exit_code_130(run, section, tmp_path, monkeypatch, stop):
    def interrupt(*_, **__):
        raise stop

    monkeypatch.setattr(st.methods.DUSTED, "train", interrupt)
    result = run("denoise", section, tmp_path / "out.zarr", *FAST)
    assert result.exit_code == 130
    assert lines_of(result.stderr) == ["stopped; 'a.pt' is saved" if isinstance(stop, KeyboardInterrupt) else "stopped"]
    assert result.stdout == ""
    assert names_in(tmp_path) == [section.name]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_interrupted_run_goes_on(section, tmp_path):
    slow = (
        "import time\n"
        "from stdenoise.methods.dusted.module import DUSTEDModule\n"
        "from stdenoise.__main__ import main\n"
        "loss = DUSTEDModule.loss\n"
        "DUSTEDModule.loss = lambda *args: time.sleep(0.02) or loss(*args)\n"
        "main()\n"
    )
    settings = ["--set", "n_hidden=8", "--set", "n_latent=3", "--set", "n_epochs=300", "--set", "schedule=paper"]
    options = [
        *settings,
        "--no-progress",
        "--checkpoint",
        "run.pt",
        "--checkpoint-minutes",
        "0",
        "--resume",
        "--dtype",
        "float32",
    ]
    command = ["denoise", section.name, "out.zarr", *options]
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
    assert lines_of(errors) == ["stopped by SIGINT; 'run.pt' is saved: run it again with resume to go on."]
    assert printed == ""
    assert names_in(tmp_path) == ["run.pt", section.name]
    with contextlib.chdir(tmp_path), mock.patch("time.sleep"):
        result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 0, result.output
    whole = st.tl.denoise(
        read_with_graph(section), copy=True, n_hidden=8, n_latent=3, n_epochs=300, schedule="paper", progress=False
    )
    after = ad.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_allclose(after.layers["dusted_mean"], whole.layers["dusted_mean"], rtol=1e-3)


def read_with_graph(path):
    adata = ad.read_h5ad(path)
    st.pp.spatial_graph(adata)
    return adata


def test_the_summary_comes_from_the_first_process(run, section, tmp_path, monkeypatch):
    for rank, speaks in (("0", True), ("1", False)):
        for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        # No other process is there to be joined.
        result = run("denoise", section, tmp_path / f"out{rank}.h5ad", "--method", "gene_mean")
        assert result.exit_code == 0, result.output
        assert ("method" in result.stdout) == speaks
        assert (tmp_path / f"out{rank}.h5ad").exists() == speaks


NETWORK_BAD = [
    (["--memory", "much"], "memory='much' is not valid; give a number of GB"),
    (["--memory", "100 MB"], r"dusted on 61 spots x 12 genes needs about .* may use 0\.10 GB; give more memory"),
    (["--devices", "0"], "devices must be an integer >= 1, not 0"),
    (["--precision", "16"], "precision='16' is not valid"),
    (["--dtype", "float64"], "dtype='float64' is not valid"),
    (["--arrays", "gate"], "arrays='gate' is not valid"),
    (["--checkpoint", "a.pt", "--checkpoint-minutes", "-1"], "minutes must be"),
    (["--resume"], "--resume.* need --checkpoint"),
    (["--checkpoint", "nowhere/a.pt"], "checkpoint='nowhere/a.pt': there is no folder"),
    (
        ["--checkpoint", "text.pt", "--resume"],
        "cannot replace 'text.pt': it is a file, and no checkpoint or a damaged one",
    ),
    (["--save-model", "nowhere/a.pt"], "save_model='nowhere/a.pt': there is no folder"),
    (["--model", "missing.pt"], "there is no model 'missing.pt'"),
    (["--model", "text.pt"], "'text.pt' is damaged or no model of stdenoise: "),
    (["--method", "gene_mean", "--memory", "4 GB"], r"\['memory'\] have no effect for gene_mean; .*'dca'"),
    (["--method", "gene_mean", "--graph-key", "x"], "'x_connectivities' is not in adata.obsp"),
    (["--method", "gene_mean", "--spatial-key", "x"], "'x' is not in adata.obsm"),
    (["--method", "gene_mean", "--library-key", "x"], "'x' is not in adata.obs"),
    (["--method", "gene_mean", "--arrays", "dropout"], r"arrays='dropout' is not valid for gene_mean.*\['mean'\]"),
]


@pytest.mark.parametrize(("options", "message"), NETWORK_BAD, ids=[" ".join(case[0]) for case in NETWORK_BAD])
@pytest.mark.parametrize("target", ["out.h5ad", "out.zarr"])
def test_what_a_network_cannot_do_is_one_line_and_exit_code_2(
    run, section, tmp_path, monkeypatch, options, message, target
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("no network")
    settings = [] if "gene_mean" in options or "--model" in options else FAST
    result = run("denoise", "section.h5ad", target, "--no-progress", *settings, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = lines_of(result.stderr)
    assert re.match(f"Error: {message}", line)
    assert names_in(tmp_path) == ["section.h5ad", "text.pt"]
