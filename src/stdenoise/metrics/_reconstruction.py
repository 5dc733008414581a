"""How close a layer is to a truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_choice, lookup, near_match
from stdenoise._base.device import resolve_device
from stdenoise._io.expression import Expression, read_expression
from stdenoise._io.read import check_anndata, find_spatial_key, read_coordinates
from stdenoise.metrics._scaled import BLOCK_ENTRIES, gene_positions, scaled
from stdenoise.spatial.lattice import find_lattice
from stdenoise.spatial.normalize import Matrix, gene_blocks
from stdenoise.stats.correlation import pearson
from stdenoise.stats.reconstruction import cosine, ssim

if TYPE_CHECKING:
    from scipy.sparse import sparray, spmatrix

    from stdenoise.spatial.lattice import Lattice


def reconstruction(
    adata: AnnData,
    layer: str | None = None,
    *,
    truth: str | AnnData | pd.DataFrame | np.ndarray | spmatrix | sparray,
    genes: Sequence[str] | str | None = None,
    scale: Literal["log1p", "stored"] = "log1p",
    within: str | None = None,
    per: Literal["gene", "spot"] | None = None,
    spatial_key: str = _keys.SPATIAL,
    device: str = "auto",
) -> pd.Series | pd.DataFrame:
    """Compare a layer with the true expression.

    Both sides are normalised over the genes of the layer, so a denoised gene subset is compared with the truth of the same
    genes. A low error does not show that patterns were found: the mean of each gene has a low one, too, and a correlation
    per gene of NaN. Read `mse` and `pearson_gene` together.

    Parameters
    ----------
    adata
        Annotated data; not changed.
    layer
        What is judged: `None` for `X`, a layer, a DataFrame in `obsm`, or the key of a denoised result.
    truth
        Name of a layer; an AnnData or a DataFrame, matched by the names of spots and genes; or an array, dense or sparse,
        of shape `(n_spots, n_genes)` with the genes of the layer. Counts, unless `scale="stored"`.
    genes
        Genes that are scored: all of the layer, `"highly_variable"`, or names. Values are normalised before.
    scale
        `"log1p"`: both sides as `log1p` of counts per 10 000. Layers are taken as counts, except for denoised results on the
        log scale, which get no second logarithm. `"stored"`: the values as they are.
    within
        Column of `obs` with `True` and `False`, such as a band at the edge: the scores are given for all spots, and for
        those inside and outside of it.
    per
        `None` for one value per score, `"gene"` or `"spot"` for a table of genes or spots.
    spatial_key
        Key of the coordinates in `obsm`, for the structural similarity alone.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.

    Returns
    -------
    A Series of scores; with `within` a DataFrame of them with the rows `all`, `inside` and `outside`:

    `mse`, `rmse`
        Mean squared error over all entries, and its root.
    `pearson_gene`, `pearson_gene_median`
        Mean and median over genes of the correlation over spots. Genes without variance on either side have none.
    `pearson_spot`, `cosine`
        Mean over spots of the correlation and cosine similarity over genes.
    `ssim`
        Structural similarity, mean over spots and genes: Gaussian window of 1.5 cells over the cells that hold a spot,
        range of the truth of each gene. NaN unless the spots lie on a rectangular grid parallel to the axes; where
        coordinates are jittered or rotated, store the array positions in `obsm` and name them with `spatial_key`.
    `mse_counts`
        Mean squared error of counts, each spot scaled to the total of its truth. NaN with `scale="stored"`, or for a truth
        on the log scale.
    `n_spots`, `n_genes`, `n_undefined`
        Spots, genes, and genes without a correlation.

    With `per`, a DataFrame with a row per gene (`mse`, `rmse`, `pearson`, `ssim`, `mse_counts`) or per spot (`mse`, `rmse`,
    `pearson`, `cosine`, `ssim`, `mse_counts`). With `per="gene"` and `within`, the rows are pairs of `all`, `inside` or
    `outside` and a gene.

    Raises
    ------
    KeyError
        There is no such layer, gene, column or key, or the truth lacks spots or genes.
    TypeError, ValueError
        The truth has another shape, the values are not finite numbers, or an argument is not valid.

    References
    ----------
    Wang et al. 2004, Image quality assessment: from error visibility to structural similarity,
    `doi:10.1109/TIP.2003.819861 <https://doi.org/10.1109/TIP.2003.819861>`_.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> scores = st.metrics.reconstruction(adata, truth="true_mean")
    >>> bool(scores["mse"] > 0)
    True
    """
    check_choice("scale", scale, ["log1p", "stored"])
    check_choice("per", per, [None, "gene", "spot"])
    check_anndata(adata)
    if per == "spot" and within is not None:
        raise ValueError(f"within={within!r} does not apply to per='spot': every spot has a row of its own.")
    groups = _read_groups(adata, within)
    predicted = read_expression(adata, layer)
    target = _read_truth(adata, truth, predicted)
    positions = gene_positions(adata, layer, predicted, genes)
    coordinates = _read_coordinates_if_any(adata, spatial_key)

    on = resolve_device(device)
    lattice = None if coordinates is None else find_lattice(coordinates, device=on)
    sides = [scaled(predicted, scale), scaled(target, scale)]
    if scale == "log1p" and target.scale == "counts":
        sides += [_match_totals(predicted, target.values), target.values]
    if genes is not None:
        sides = [side[:, positions] for side in sides]

    of_genes, ssim_of_spots = _score_genes(sides, groups, lattice, on)
    tables = {
        name: pd.DataFrame(scores, index=predicted.genes[positions].rename("gene")) for name, scores in of_genes.items()
    }
    if per == "gene":
        return tables["all"] if within is None else pd.concat(tables, names=["spots", "gene"])
    of_spots = pd.DataFrame(_score_spots(sides, on), index=adata.obs_names)
    of_spots.insert(4, "ssim", ssim_of_spots)
    if per == "spot":
        return of_spots
    rows = {name: _summary(tables[name], of_spots[spots]) for name, spots in groups.items()}
    return rows["all"] if within is None else pd.DataFrame(rows).T


def _read_groups(adata: AnnData, within: str | None) -> dict[str, np.ndarray]:
    groups = {"all": np.ones(adata.n_obs, dtype=bool)}
    if within is not None:
        column = lookup(adata.obs, within, where="adata.obs")
        if not pd.api.types.is_bool_dtype(column) or column.isna().any():
            raise TypeError(f"adata.obs[{within!r}] must hold True and False for every spot, not {column.dtype}.")
        groups["inside"] = column.to_numpy(dtype=bool)
        groups["outside"] = ~groups["inside"]
    return groups


def _read_coordinates_if_any(adata: AnnData, spatial_key: str) -> np.ndarray | None:
    # Truth needs no coordinates; a key that was asked for and is not there is a mistake, though.
    if spatial_key == _keys.SPATIAL and find_spatial_key(adata, spatial_key) not in adata.obsm:
        return None
    return read_coordinates(adata, spatial_key)


def _read_truth(adata: AnnData, truth: Any, predicted: Expression) -> Expression:
    names = predicted.genes
    if isinstance(truth, str):
        target = read_expression(adata, truth)
        return target if target.genes.equals(names) else read_expression(adata, truth, genes=list(names))
    if isinstance(truth, AnnData):
        if truth.X is None:
            raise ValueError("the AnnData given as truth has no X.")
        rows = _match(truth.obs_names, adata.obs_names, "spots")
        values = truth.X[rows][:, _match(truth.var_names, names, "genes")]
    elif isinstance(truth, pd.DataFrame):
        rows = _match(truth.index, adata.obs_names, "spots")
        values = truth.to_numpy()[rows][:, _match(truth.columns, names, "genes")]
    elif isinstance(truth, np.ndarray) or sparse.issparse(truth):
        values = truth
        if values.shape != predicted.values.shape:
            raise ValueError(
                f"truth has shape {values.shape}, but {predicted.where} has shape {predicted.values.shape}; "
                "give the truth of the same spots and genes."
            )
    else:
        raise TypeError(
            f"truth must be the name of a layer, an AnnData, a DataFrame or an array, not {type(truth).__name__}."
        )
    # A layer of this name, so that messages about its values speak of the truth.
    holder = AnnData(obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=names), layers={"truth": values})
    return read_expression(holder, "truth", scale="counts")


def _match(names: pd.Index, wanted: pd.Index, what: str) -> np.ndarray:
    if not names.is_unique:
        raise ValueError(
            f"the truth names {names.duplicated().sum()} {what} twice, such as {names[names.duplicated()][0]!r}."
        )
    positions = names.get_indexer(wanted)
    missing = wanted[positions < 0]
    if len(missing):
        hint = near_match(str(missing[0]), names)
        raise KeyError(
            f"the truth lacks {len(missing)} of {len(wanted)} {what}, such as {list(missing[:3])}; it has {len(names)}.{hint}"
        )
    return np.asarray(positions)


def _match_totals(predicted: Expression, truth: Matrix) -> Matrix:
    """Predicted counts, each spot scaled to the total of its truth."""
    values = predicted.values
    if predicted.scale == "log1p":
        values = values.expm1() if sparse.issparse(values) else np.expm1(values, dtype=np.float64)
    total, wanted = (np.asarray(side.sum(axis=1, dtype=np.float64)).ravel() for side in (values, truth))
    factor = np.divide(wanted, total, out=np.zeros_like(total), where=total > 0)
    return sparse.diags(factor).tocsr() @ values if sparse.issparse(values) else values * factor[:, None]


def _score_genes(
    sides: list[Matrix], groups: dict[str, np.ndarray], lattice: Lattice | None, device: torch.device
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Scores of each gene per group of spots, and the structural similarity of each spot."""
    n_spots, n_genes = sides[0].shape
    n_cells = n_spots if lattice is None else lattice.shape[0] * lattice.shape[1]
    size = BLOCK_ENTRIES * n_spots // n_cells
    inside = {name: torch.tensor(spots, device=device) for name, spots in groups.items()}
    columns = ["mse", "rmse", "pearson", "ssim", "mse_counts"]
    out = {name: {column: np.full(n_genes, np.nan) for column in columns} for name in groups}
    similarity, n_defined = torch.zeros(n_spots, dtype=torch.float64, device=device), 0
    for parts in zip(
        *(gene_blocks(side, block_entries=size, device=device, dtype=torch.float64) for side in sides), strict=True
    ):
        block, values = parts[0][0], [part for _, part in parts]
        maps = None if lattice is None else ssim(values[0], values[1], lattice)
        if maps is not None:
            similarity += maps.nansum(1)
            n_defined += int(maps[0].isfinite().sum())
        for name, spots in inside.items():
            chosen = [side[spots] for side in values]
            scores = {
                "mse": (chosen[0] - chosen[1]).square().mean(0),
                "pearson": pearson(chosen[0], chosen[1]),
            }
            if maps is not None:
                scores["ssim"] = maps[spots].mean(0)
            if len(chosen) == 4:
                scores["mse_counts"] = (chosen[2] - chosen[3]).square().mean(0)
            for column, score in scores.items():
                out[name][column][block] = score.cpu().numpy()
            out[name]["rmse"][block] = np.sqrt(out[name]["mse"][block])
    return out, (similarity / n_defined if n_defined else similarity + torch.nan).cpu().numpy()


def _score_spots(sides: list[Matrix], device: torch.device) -> dict[str, np.ndarray]:
    """Scores of each spot."""
    out = {name: np.full(sides[0].shape[0], np.nan) for name in ("mse", "rmse", "pearson", "cosine", "mse_counts")}
    # Blocks of columns of the transposed matrices: some spots, all genes.
    for parts in zip(
        *(gene_blocks(side.T, block_entries=BLOCK_ENTRIES, device=device, dtype=torch.float64) for side in sides),
        strict=True,
    ):
        block, values = parts[0][0], [part for _, part in parts]
        out["mse"][block] = (values[0] - values[1]).square().mean(0).cpu().numpy()
        out["pearson"][block] = pearson(values[0], values[1]).cpu().numpy()
        out["cosine"][block] = cosine(values[0], values[1]).cpu().numpy()
        if len(values) == 4:
            out["mse_counts"][block] = (values[2] - values[3]).square().mean(0).cpu().numpy()
    out["rmse"] = np.sqrt(out["mse"])
    return out


def _summary(of_genes: pd.DataFrame, of_spots: pd.DataFrame) -> pd.Series:
    mse = float(of_genes["mse"].mean())
    return pd.Series(
        {
            "mse": mse,
            "rmse": mse**0.5,
            "pearson_gene": of_genes["pearson"].mean(),
            "pearson_gene_median": of_genes["pearson"].dropna().median(),
            "pearson_spot": of_spots["pearson"].mean(),
            "cosine": of_spots["cosine"].mean(),
            "ssim": of_genes["ssim"].mean(),
            "mse_counts": of_genes["mse_counts"].mean(),
            "n_spots": float(len(of_spots)),
            "n_genes": float(len(of_genes)),
            "n_undefined": float(of_genes["pearson"].isna().sum()),
        }
    )
