import io
import os
import tarfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stdenoise.datasets._readers import read_st, read_visium

COUNTS = np.array([[0, 3, 1], [2, 0, 0], [0, 0, 5], [1, 1, 1]])
BARCODES = ["AAAC-1", "AAAG-1", "AACC-1", "AACG-1"]
POSITIONS = [
    ("AACG-1", 1, 0, 2, 100, 230),
    ("AAAC-1", 1, 0, 0, 101, 31),
    ("TTTT-1", 0, 5, 5, 900, 901),
    ("AAAG-1", 0, 1, 1, 202, 132),
    ("AACC-1", 1, 2, 4, 303, 433),
]


def write_matrix(path):
    """Write the counts as Space Ranger does."""
    genes = sparse.csc_matrix(COUNTS.T)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(BARCODES, dtype="S")
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(genes, name)
        matrix["shape"] = np.array(genes.shape)
        features = matrix.create_group("features")
        features["id"] = np.array(["ENSG1", "ENSG2", "ENSG3"], dtype="S")
        features["name"] = np.array(["NPY", "MBP", "MBP"], dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * 3, dtype="S")
        features["genome"] = np.array(["GRCh38"] * 3, dtype="S")
    return path


def write_positions(folder, kind):
    columns = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
    text = (columns if kind == "header" else "") + "".join(",".join(map(str, row)) + "\n" for row in POSITIONS)
    if kind in ("plain", "header"):
        path = folder / "positions.csv"
        path.write_text(text)
        return path
    path = folder / "spatial.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        files = {"spatial/scalefactors_json.json": "{}", "spatial/tissue_positions_list.csv": text}
        for name, content in list(files.items())[: 1 if kind == "empty" else 2]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    return path


@pytest.mark.parametrize("kind", ["plain", "header", "archive"])
def test_visium(tmp_path, kind):
    labels = tmp_path / "labels.tsv"
    labels.write_text("AAAC-1\tother\tWM\nAAAC-1\t7\tL3\nAACG-1\t7\tWM\n")
    paths = {"counts": write_matrix(tmp_path / "counts.h5"), "positions": write_positions(tmp_path, kind)}
    assert "region" not in read_visium(paths, "7").obs
    adata = read_visium({**paths, "labels": labels}, "7")
    assert adata.obs_names.tolist() == ["AAAC-1", "AACC-1", "AACG-1"]  # AAAG-1 is not under the tissue
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS[[0, 2, 3]])
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.obsm["spatial"], [[31, 101], [433, 303], [230, 100]])
    assert adata.obs["array_row"].tolist() == [0, 2, 0]
    assert adata.obs["array_col"].tolist() == [0, 4, 2]
    assert adata.obs["region"].astype(object).fillna("-").tolist() == ["Layer3", "-", "WM"]
    assert adata.var_names.is_unique
    assert not adata.is_view


def test_positions_that_are_missing(tmp_path):
    counts, path = write_matrix(tmp_path / "c.h5"), write_positions(tmp_path, "plain")
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "AACC" not in line))
    with pytest.raises(ValueError, match="1 of 4 .* c.h5 .* positions.csv.*'AACC-1'"):
        read_visium({"counts": counts, "positions": path}, "7")
    with pytest.raises(ValueError, match="spatial.tar.gz"):
        read_visium({"counts": counts, "positions": write_positions(tmp_path, "empty")}, "7")


def test_spatial_transcriptomics_array(tmp_path):
    table = pd.DataFrame(COUNTS, index=["10x13", "10x14", "3x4", "5x6"], columns=["A", "B", "C"])
    table.to_csv(tmp_path / "counts.tsv.gz", sep="\t")
    (tmp_path / "positions.tsv").write_text(
        "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
        "3\t4\t3.1\t4.1\t30.5\t40.5\t1\n10\t13\t10.1\t13\t100\t130.25\t1\n10\t14\t10\t14\t101\t140\t1\n"
    )
    (tmp_path / "labels.tsv").write_text(
        "Row.names\tx\ty\tpixel_x\tpixel_y\tlabel\n"
        "a\t10.03\t12.98\t1\t1\tcancer\nb\t2.97\t4.01\t1\t1\tfat\nc\t\t\t1\t1\tnowhere\n"
    )
    paths = {
        "counts": tmp_path / "counts.tsv.gz",
        "positions": tmp_path / "positions.tsv",
        "labels": tmp_path / "labels.tsv",
    }
    adata = read_st(paths, "A1")
    assert adata.obs_names.tolist() == ["10x13", "10x14", "3x4"]  # 5x6 was not selected
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS[:3])
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.obsm["spatial"], [[100, 130.25], [101, 140], [30.5, 40.5]])
    assert adata.obs["array_col"].tolist() == [10, 10, 3]
    assert adata.obs["array_row"].tolist() == [13, 14, 4]
    assert adata.obs["region"].astype(object).fillna("-").tolist() == ["cancer", "-", "fat"]


@pytest.mark.data
def test_local_sections_have_the_size_that_the_registry_says():
    import stdenoise as st

    folder = Path(os.environ.get("STDENOISE_DATA", "no folder"))
    table = st.datasets.registry()
    here = table[[(folder / file).exists() for file in table["file"]]]
    if here.empty:
        pytest.skip(f"STDENOISE_DATA={str(folder)!r} holds no known section")
    for row in here.itertuples():
        with h5py.File(folder / row.file) as file:
            n_spots = len(ad.io.read_elem(file["obs"]))
            n_genes = len(ad.io.read_elem(file["var"]))
        assert n_spots == row.n_spots
        # Local files hold a subset of the genes of what is downloaded.
        assert n_genes <= row.n_genes
        assert row.download or n_genes == row.n_genes
