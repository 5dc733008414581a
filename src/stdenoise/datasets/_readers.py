"""Readers of the formats in which public sections are distributed."""

from __future__ import annotations

import tarfile
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from stdenoise._base import keys as _keys

_POSITION_COLUMNS = ["in_tissue", "array_row", "array_col", "pixel_row", "pixel_col"]
_LAYERS = {f"L{i}": f"Layer{i}" for i in range(1, 7)}


def read_visium(paths: dict[str, Path], section: str) -> AnnData:
    """Read the spots under the tissue: Space Ranger's matrix, its positions, and where given a table of layers.

    Parameters
    ----------
    paths
        `"counts"` (`.h5`), `"positions"` (text, or an archive that holds it), and optionally `"labels"` (barcode, section and
        layer, tab-separated).
    section
        Name of the section in the table of layers.
    """
    with warnings.catch_warnings():
        # It asks for unique names, which the next line makes.
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        adata = sc.read_10x_h5(paths["counts"])
    adata.var_names_make_unique()
    positions = _read_positions(paths["positions"])
    missing = ~adata.obs_names.isin(positions.index)
    if missing.any():
        raise ValueError(
            f"{missing.sum()} of {adata.n_obs} barcodes of {paths['counts'].name} have no position in "
            f"{paths['positions'].name}, such as {adata.obs_names[missing][0]!r}."
        )
    here = positions.loc[adata.obs_names]
    adata.obs[["array_row", "array_col"]] = here[["array_row", "array_col"]]
    adata.obsm[_keys.SPATIAL] = here[["pixel_col", "pixel_row"]].to_numpy(dtype=np.float64)
    if "labels" in paths:
        table = pd.read_csv(paths["labels"], sep="\t", names=["barcode", "section", "layer"], dtype=str)
        layer = table[table["section"] == section].set_index("barcode")["layer"].replace(_LAYERS)
        adata.obs["region"] = pd.Categorical(layer.reindex(adata.obs_names))
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    return adata[here["in_tissue"].to_numpy() == 1].copy()


def _read_positions(path: Path) -> pd.DataFrame:
    """Positions by barcode; older files have no header line."""
    text = path.read_bytes()
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if Path(m.name).name.startswith("tissue_positions")]
            stream = archive.extractfile(members[0]) if members else None
            if stream is None:
                raise ValueError(f"{path.name} holds no file of tissue positions.")
            text = stream.read()
    header = 0 if text.startswith(b"barcode") else None
    table = pd.read_csv(BytesIO(text), header=header, index_col=0)
    table.columns = pd.Index(_POSITION_COLUMNS)
    return table


def read_st(paths: dict[str, Path], section: str) -> AnnData:
    """Read a section of a Spatial Transcriptomics array.

    Parameters
    ----------
    paths
        Tab-separated tables: `"counts"` (spots named `column x row`, genes), `"positions"` and `"labels"`.
    section
        Not used.
    """
    counts = pd.read_csv(paths["counts"], sep="\t", index_col=0)
    positions, labels = (_by_spot(pd.read_csv(paths[role], sep="\t")) for role in ("positions", "labels"))
    spots = counts.index.intersection(positions.index)
    array = spots.str.split("x", expand=True).to_frame(index=False).astype(int)
    region = pd.Categorical(labels["label"].reindex(spots))
    return AnnData(
        X=sparse.csr_matrix(counts.loc[spots].to_numpy(dtype=np.float32)),
        obs=pd.DataFrame(
            {"array_row": array[1].to_numpy(), "array_col": array[0].to_numpy(), "region": region}, index=spots
        ),
        var=pd.DataFrame(index=counts.columns),
        obsm={_keys.SPATIAL: positions.loc[spots, ["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)},
    )


def _by_spot(table: pd.DataFrame) -> pd.DataFrame:
    table = table.dropna(subset=["x", "y"])
    names = table["x"].round().astype(int).astype(str) + "x" + table["y"].round().astype(int).astype(str)
    return table.set_index(names)


READERS: dict[str, Callable[[dict[str, Path], str], AnnData]] = {"10x_h5_visium": read_visium, "st_tsv": read_st}
