"""The command line: thin commands over the public functions."""

from __future__ import annotations

import ast
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import stdenoise as st
from stdenoise._base import files
from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_folder, check_name
from stdenoise._base.device import resolve_device, speaks_for_all
from stdenoise._base.keys import GraphKeys
from stdenoise._base.paths import ANNDATA, CHECKPOINT, FIGURE, MODEL, check_paths
from stdenoise._base.random import check_seed
from stdenoise._base.signals import signals_interrupt
from stdenoise._io import disk
from stdenoise._io.source import Source, open_source
from stdenoise.get._summary import summary
from stdenoise.methods._base import Method
from stdenoise.methods._registry import make_method
from stdenoise.pp._highly_variable import MIN_TOTAL, mark_highly_variable
from stdenoise.spatial.normalize import lognorm
from stdenoise.tl._open_run import check_compute

if TYPE_CHECKING:
    from anndata import AnnData


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(st.__version__, prog_name="stdenoise")
@click.option("-v", "--verbose", is_flag=True, help="Say on standard error what is being done.")
@click.pass_context
def main(context: click.Context, *, verbose: bool) -> None:
    """Denoise spatial transcriptomics counts."""
    context.with_resource(signals_interrupt())
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    if verbose:
        logging.getLogger("stdenoise").setLevel(logging.INFO)


@main.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path, readable=False))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--method", help="Name of a method, see `stdenoise methods`; that of --model, or dusted, if not given.")
@click.option("--genes", help="Genes to model: 'highly_variable', or names joined by commas. All genes if not given.")
@click.option(
    "--n-top-genes",
    type=click.IntRange(min=1),
    help=f"Model this many highly variable genes (seurat_v3), chosen among those with more than {MIN_TOTAL} counts.",
)
@click.option("--layer", help="Layer with the raw counts; X if not given.")
@click.option("--radius", help="Radius of the spatial graph, where IN has none; chosen automatically if not given.")
@click.option(
    "--graph-key",
    default=_keys.SPATIAL,
    show_default=True,
    help="Key of the spatial graph; with --radius of a new one.",
)
@click.option("--spatial-key", default=_keys.SPATIAL, show_default=True, help="Key of the coordinates in obsm.")
@click.option("--features-key", help="Key of image features in obsm, for methods that can use them.")
@click.option("--library-key", help="Column of obs naming the section of each spot.")
@click.option("--key-added", help="Prefix of the results; the name of the method if not given.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A parameter of the method; repeatable.")
@click.option("--memory", help="Memory that a network may use, such as '6 GB'; 60 % of what is free if not given.")
@click.option(
    "--arrays",
    help="Arrays to write beside the mean: of dispersion,dropout,latent; all that the method has if not given.",
)
@click.option(
    "--dtype",
    default=None,
    help="float32 or float16; if not given, float32 rounded to 9 significant bits (within 0.2 %).",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<i>.")
@click.option("--devices", default=1, show_default=True, help="GPUs, or processes on the CPU, that train together.")
@click.option("--strategy", default="auto", show_default=True, help="How they are started, as in Lightning Fabric.")
@click.option("--precision", default="32-true", show_default=True, help="32-true or bf16-mixed.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="File in which the training is saved on its way.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads on the CPU; those torch has if not given.")
@click.option("--checkpoint-minutes", type=float, help="Time between two savings; 10 if not given.")
@click.option("--resume", is_flag=True, help="Resume from the checkpoint if it exists.")
@click.option("--check-counts/--no-check-counts", default=True, show_default=True, help="Refuse fractional counts.")
@click.option("--save-model", type=click.Path(path_type=Path), help="File for the trained network.")
@click.option("--model", type=click.Path(path_type=Path), help="File of a trained network, instead of a training.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same numbers.")
@click.option("--progress/--no-progress", default=True, show_default=True, help="Progress bar on standard error.")
def denoise(
    source: Path,
    target: Path,
    *,
    method: str | None,
    genes: str | None,
    n_top_genes: int | None,
    layer: str | None,
    radius: str | None,
    graph_key: str,
    spatial_key: str,
    library_key: str | None,
    key_added: str | None,
    settings: tuple[str, ...],
    memory: str | None,
    arrays: str | None,
    device: str,
    devices: int,
    strategy: str,
    precision: str,
    threads: int | None,
    checkpoint: Path | None,
    checkpoint_minutes: float | None,
    resume: bool,
    check_counts: bool,
    save_model: Path | None,
    seed: int,
    model: Path | None,
    **options: Any,
) -> None:
    """Denoise the section in IN and write it with the results to OUT; both are .h5ad or .zarr.

    With a network and a .zarr as OUT, a section that does not fit into memory goes from disk to disk. Started by torchrun or srun, the
    processes work together.
    """
    with _one_line_errors():
        if genes is not None and n_top_genes is not None:
            raise ValueError("--genes and --n-top-genes exclude each other; give one.")
        params = dict(_parse_setting(setting) for setting in settings)
        denoiser = _method(method, params, genes, model)
        compute = st.Compute(memory=memory, devices=devices, strategy=strategy, precision=precision, threads=threads)
        saving = _checkpoint(checkpoint, checkpoint_minutes, resume)
        check_compute(compute, saving, denoiser)
        if save_model is not None and "model" not in denoiser.info.runs:
            raise TypeError(f"--save-model has no effect for {denoiser.info.name}, which trains no network here.")
        if save_model is not None:
            check_folder("save_model", save_model)
        resolve_device(device)
        check_seed(seed)
        check_name("key_added", denoiser.info.name if key_added is None else key_added)
        check_name("graph_key", graph_key)
        check_paths(
            [("IN", source), ("model", model)],
            [
                ("OUT", target, ANNDATA),
                ("checkpoint", checkpoint, CHECKPOINT),
                ("save_model", save_model, MODEL),
            ],
        )
        files.check_writable(target)
        may_stream = "patches" in denoiser.info.runs and target.suffix == ".zarr" and n_top_genes is None
        data = open_source(source, layer) if may_stream else disk.read(source)
        adata = data.light if isinstance(data, Source) else data
        start = time.perf_counter()
        chosen: str | list[str] | None = genes
        if genes is not None and genes != _keys.HIGHLY_VARIABLE:
            chosen = [name.strip() for name in genes.split(",")]
        if n_top_genes is not None:
            mark_highly_variable(adata, n_top_genes, layer)
            chosen = _keys.HIGHLY_VARIABLE
        if radius is not None and "graph" not in denoiser.info.needs:
            raise ValueError(f"--radius {radius} has no effect: {denoiser.info.name} reads no spatial graph.")
        is_missing = GraphKeys(graph_key).connectivities not in adata.obsp
        # A key other than the default names a graph there is, or with --radius a new one.
        if "graph" in denoiser.info.needs and is_missing and (radius is not None or graph_key == _keys.SPATIAL):
            st.pp.spatial_graph(
                adata,
                radius="auto" if radius is None else _literal(radius),
                library_key=library_key,
                spatial_key=spatial_key,
                key_added=graph_key,
            )
            if not denoiser.info.reads("coordinates"):
                spatial_key = _keys.SPATIAL
        elif radius is not None:
            raise ValueError(
                f"--radius {radius} has no effect: IN already has a graph {graph_key!r}. "
                "Leave --radius out, or name another graph with --graph-key."
            )
        if arrays is not None:
            options["arrays"] = [name.strip() for name in arrays.split(",")]
        shared = {
            "layer": layer,
            "graph_key": graph_key,
            "spatial_key": spatial_key,
            "library_key": library_key,
            "features_key": options.pop("features_key"),
            "device": device,
            "seed": seed,
            "progress": options.pop("progress"),
        }
        with st.settings.override(check_counts=check_counts):
            if save_model is not None:
                disk.check_can_be_written(adata, target)
                denoiser = st.tl.train(data, denoiser, genes=chosen, compute=compute, checkpoint=saving, **shared)
                if speaks_for_all():
                    denoiser.save(save_model)
                # What is left of it for a trained network.
                compute, saving, chosen = st.Compute(memory=memory, precision=precision, threads=threads), None, None
            st.tl.denoise(
                data,
                denoiser,
                genes=chosen,
                key_added=key_added,
                out=target,
                compute=compute,
                checkpoint=saving,
                **shared,
                **options,
            )
        seconds = time.perf_counter() - start
        if speaks_for_all():
            key = key_added or denoiser.info.name
            click.echo("\n".join(summary(disk.read_light(target), key, target, seconds)))


@main.command()
def methods() -> None:
    """List the methods."""
    for name, row in st.methods.table().iterrows():
        click.echo(str(name))
        for label, value in row.items():
            if value:
                click.echo(f"  {label:<10} {value}")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results are kept; CONFIG without its suffix if not given.",
)
@click.option("--n-jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes at a time.")
@click.option("--memory", help="Memory that all processes together may take, such as '8 GB'; no limit if not given.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<i>.")
@click.option("--progress/--no-progress", default=True, show_default=True, help="Progress bar on standard error.")
def benchmark(
    config: Path, *, folder: Path | None, n_jobs: int, memory: str | None, device: str, progress: bool
) -> None:
    """Run the methods, data sets and metrics of CONFIG (TOML), and write tables and figures.

    Started again after an interruption, it goes on where it stopped.
    """
    home = config.with_suffix("") if folder is None else folder
    with _one_line_errors(keep_lines=True):
        table = st.benchmark.run(config, folder=home, n_jobs=n_jobs, memory=memory, device=device, progress=progress)
        path = st.benchmark.report(home)
        if table.empty:
            raise OSError(f"no unit of {str(config)!r} has succeeded; {str(path)!r} says why.")
    click.echo(
        f"{len(table)} numbers from {table['dataset'].nunique()} data sets and {table['method'].nunique()} methods."
    )
    click.echo(f"Report: {path.absolute()}")


@main.command()
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--pattern", default="P1", show_default=True, help="Cells, genes and layout: P1 to P6.")
@click.option("--setting", default=1, show_default=True, help="Lost counts, from 1 (none) to 4.")
@click.option("--edge-mode", default="absolute", show_default=True, help="How losses at the edge add up.")
@click.option("--n-spots", type=click.IntRange(min=1), help="The pattern's own number if not given.")
@click.option("--n-genes", type=click.IntRange(min=1), help="The pattern's own number if not given.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same tissue.")
def simulate(
    target: Path,
    *,
    pattern: str,
    setting: int,
    edge_mode: str,
    n_spots: int | None,
    n_genes: int | None,
    seed: int,
) -> None:
    """Simulate a tissue whose true counts are known, and write it to OUT, a .h5ad or .zarr."""
    with _one_line_errors():
        files.check_writable(target)
        adata = st.datasets.simulate(
            pattern, setting=setting, seed=seed, edge_mode=edge_mode, n_spots=n_spots, n_genes=n_genes
        )
        disk.write(adata, target)
    click.echo(f"{adata.n_obs} spots x {adata.n_vars} genes, {_mean_count(adata):.0f} counts per spot: {target}")


@main.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("stdenoise_demo"),
    show_default=True,
    help="Where to put the figure and the data.",
)
@click.option("--n-epochs", default=500, show_default=True, type=click.IntRange(min=1))
def demo(folder: Path, n_epochs: int) -> None:
    """Denoise a tissue made in code, whose truth is known, and show how near the result comes."""
    import matplotlib

    matplotlib.use("agg")
    with _one_line_errors():
        folder.mkdir(parents=True, exist_ok=True)
        figure, data = folder / "demo.png", folder / "demo.h5ad"
        files.check_writable(data)
        check_paths([], [("the figure", figure, FIGURE), ("the data", data, ANNDATA)])
        adata = st.datasets.tissue()
        click.echo(f"A tissue of {adata.n_obs} spots x {adata.n_vars} genes, {_mean_count(adata):.0f} counts per spot.")
        start = time.perf_counter()
        st.pp.spatial_graph(adata)
        st.tl.denoise(adata, preset="simulated", n_epochs=n_epochs, progress=True)
        seconds = time.perf_counter() - start
        before, after = (
            st.metrics.reconstruction(adata, layer, truth="true_mean")["mse"] for layer in (None, "dusted")
        )
        axes = st.pl.compare(adata, _patterned_genes(adata), size=12)
        axes[0, 0].figure.savefig(figure, dpi=110)
        disk.write(adata, data)
    click.echo("\n".join(summary(adata, "dusted", data, seconds)))
    click.echo("Mean squared error against the truth, log1p of counts per 10,000:")
    click.echo(f"  raw counts  {before:.3f}")
    click.echo(f"  denoised    {after:.3f}")
    click.echo(f"Figure: {figure.absolute()}")
    click.echo(f"Data:   {data.absolute()}")


@contextmanager
def _one_line_errors(*, keep_lines: bool = False) -> Iterator[None]:
    """Turn an error into one line, or the lines of a list of problems, and exit code 2."""
    try:
        yield
    except KeyboardInterrupt as error:
        click.echo(f"\n{error}" if str(error) else "\nstopped", err=True)
        # As the shell reports an interrupted command.
        sys.exit(130)
    except Exception as error:
        # str() of a KeyError would quote its message.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        logging.getLogger("stdenoise").info("where it happened:", exc_info=True)
        if not isinstance(error, ValueError | KeyError | TypeError | OSError | FloatingPointError | MemoryError):
            message = f"{type(error).__name__}: {message} (stdenoise --verbose shows where it happened)"
        click.echo(f"Error: {message if keep_lines else ' '.join(str(message).split())}", err=True)
        sys.exit(2)


def _method(method: str | None, params: dict[str, Any], genes: str | None, model: Path | None) -> Method:
    """Return the configured method, or the trained network of a file, for which nothing else can be chosen."""
    if model is None:
        return make_method("dusted" if method is None else method, params)
    trained = st.methods.load(model)
    if method not in (None, trained.info.name):
        raise ValueError(
            f"--method {method}, but --model {model} is a network of {trained.info.name!r}; leave --method out."
        )
    given = [f"--set {name}" for name in params] + (["--genes"] if genes is not None else [])
    if given:
        raise TypeError(f"{', '.join(given)} have no effect with --model {model}, which has its own.")
    return trained


def _checkpoint(path: Path | None, minutes: float | None, resume: bool) -> st.Checkpoint | None:
    if path is not None:
        return st.Checkpoint(path, 10.0 if minutes is None else minutes, resume)
    if resume or minutes is not None:
        raise ValueError("--resume and --checkpoint-minutes need --checkpoint, the file to resume from.")
    return None


def _parse_setting(setting: str) -> tuple[str, Any]:
    """Split `key=value`; the value is a Python literal where it reads as one, else text."""
    name, separator, value = setting.partition("=")
    if not separator or not name:
        raise ValueError(f"--set {setting!r} is not of the form KEY=VALUE.")
    return name, _literal(value)


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _mean_count(adata: AnnData) -> float:
    return float(adata.X.sum() / adata.n_obs)


def _patterned_genes(adata: AnnData) -> list[str]:
    """Of three regions, the gene of middling expression that varies most between spots in the truth and peaks there."""
    truth = lognorm(adata.layers["true_mean"])
    spread = truth.std(axis=0)
    spread[adata.layers["true_mean"].mean(axis=0) > 1] = 0
    peak = adata.obs["region"].to_numpy()[truth.argmax(axis=0)]
    return [adata.var_names[(spread * (peak == region)).argmax()] for region in ("core", "rim", "islet")]


if __name__ == "__main__":
    main(prog_name="stdenoise")
