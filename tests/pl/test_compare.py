import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import sparse

import stdenoise as st


@pytest.fixture
def denoised(hexagonal):
    st.tl.denoise(hexagonal, "neighbor_mean")
    return hexagonal


def compare(adata, genes, *, key="neighbor_mean", **options):
    return st.pl.compare(adata, genes, key=key, **options)


def dots(ax):
    return ax.collections[0]


def drawn(ax):
    return np.asarray(dots(ax).get_array())


def log_per_10_000(values):
    values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=float)
    return np.log1p(1e4 * values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12))


@pytest.mark.parametrize("genes", ["gene1", ["gene3", "gene1", "gene8"]])
def test_both_sides_are_drawn_at_the_spots_one_row_per_gene(denoised, genes, unchanged):
    with unchanged(denoised):
        axes = compare(denoised, genes)
    names = [genes] if isinstance(genes, str) else genes
    assert isinstance(axes, np.ndarray)
    titles = [[ax.get_title() for ax in row] for row in axes]
    assert titles == [[f"{name}, raw", f"{name}, neighbor_mean"] for name in names]
    sides = log_per_10_000(denoised.X), log_per_10_000(denoised.layers["neighbor_mean_mean"])
    for row, name in zip(axes, names, strict=True):
        for ax, side in zip(row, sides, strict=True):
            np.testing.assert_allclose(drawn(ax), side[:, list(denoised.var_names).index(name)], rtol=1e-5)
            # Spots lie at their coordinates with y downwards, coloured up to the 99th percentile.
            np.testing.assert_allclose(dots(ax).get_offsets(), denoised.obsm["spatial"])
            assert ax.yaxis_inverted()
            assert ax.get_aspect() == 1
            assert dots(ax).get_clim() == (drawn(ax).min(), pytest.approx(np.percentile(drawn(ax), 99)))


def test_options_and_values_as_they_are(denoised):
    denoised.obsm["centres"] = 2 * denoised.obsm["spatial"]
    raw, after = compare(denoised, "gene5", normalize=False, size=7.0, cmap="magma", spatial_key="centres")[0]
    np.testing.assert_allclose(drawn(raw), denoised.X.toarray()[:, 5])
    np.testing.assert_allclose(drawn(after), denoised.layers["neighbor_mean_mean"][:, 5])
    np.testing.assert_allclose(dots(raw).get_offsets(), denoised.obsm["centres"])
    assert dots(after).get_sizes() == [7.0]
    assert dots(after).get_cmap().name == "magma"
    other = compare(denoised, "gene5", layer="true_mean", normalize=False)[0, 0]
    np.testing.assert_allclose(drawn(other), denoised.layers["true_mean"][:, 5])


def test_a_result_on_the_log_scale_is_not_logged_again(hexagonal):
    st.tl.denoise(hexagonal, "pca_reconstruction", n_components=3)
    raw, after = compare(hexagonal, "gene5", key="pca_reconstruction")[0]
    np.testing.assert_allclose(drawn(raw), log_per_10_000(hexagonal.X)[:, 5], rtol=1e-5)
    np.testing.assert_allclose(drawn(after), hexagonal.layers["pca_reconstruction_mean"][:, 5])


def test_the_default_key_and_genes_normalised_over_those_modelled(hexagonal, small):
    genes = ["gene1", "gene7", "gene10"]
    st.tl.denoise(hexagonal, genes=genes, **small)
    raw, after = st.pl.compare(hexagonal, "gene7")[0]
    assert after.get_title() == "gene7, dusted"
    np.testing.assert_allclose(drawn(raw), log_per_10_000(hexagonal[:, genes].X)[:, 1], rtol=1e-5)
    np.testing.assert_allclose(drawn(after), log_per_10_000(hexagonal.obsm["dusted_mean"])[:, 1], rtol=1e-5)
    with pytest.raises(KeyError, match=r"\['gene3'\].* 3 genes"):
        st.pl.compare(hexagonal, ["gene1", "gene3"])


def test_raw_counts_and_coordinates_are_those_that_were_denoised(hexagonal):
    hexagonal.layers["raw_counts"] = hexagonal.X.copy()
    hexagonal.X = hexagonal.X * 0
    hexagonal.obsm["X_spatial"] = hexagonal.obsm.pop("spatial")
    st.tl.denoise(hexagonal, "neighbor_mean", layer="raw_counts")
    raw = compare(hexagonal, "gene5", normalize=False)[0, 0]
    np.testing.assert_allclose(drawn(raw), hexagonal.layers["raw_counts"].toarray()[:, 5])
    np.testing.assert_allclose(dots(raw).get_offsets(), hexagonal.obsm["X_spatial"])


def test_form_of_the_counts_does_not_matter(denoised):
    counts, expected = denoised.X, log_per_10_000(denoised.X)[:, 5]
    for form in (lambda x: x.toarray(), lambda x: x.tocsc(), sparse.csr_array, lambda x: x.astype(int)):
        denoised.X = form(counts)
        np.testing.assert_allclose(drawn(compare(denoised, "gene5")[0, 0]), expected, rtol=1e-5)


def test_every_oddity_and_the_first_two_of_three_dimensions(irregular, volume):
    st.tl.denoise(irregular, "neighbor_mean")
    axes = compare(irregular, ["gene3", "gene4"])
    axes[0, 0].figure.canvas.draw()
    assert (drawn(axes[0, 0]) == 0).all()
    st.tl.denoise(volume, "neighbor_mean")
    np.testing.assert_allclose(dots(compare(volume, "gene5")[0, 0]).get_offsets(), volume.obsm["spatial"][:, :2])


def test_a_gene_in_one_of_many_spots_is_seen():
    adata = st.datasets.tissue(n_spots=150, n_genes=10)
    adata.X[:, 5] = 0
    adata.X[30, 5] = 4
    st.tl.denoise(adata, "gene_mean")
    assert dots(compare(adata, "gene5", key="gene_mean", normalize=False)[0, 0]).get_clim() == (0, 4)


def test_bad_input(denoised):
    for genes, options, message in [
        ("gnee5", {}, r"\['gnee5'\].* 12 genes .* 'gene5'"),
        (["gene5", "x"], {}, r"\['x'\].* 12 genes"),
        ([], {}, r"\[\]"),
        ("gene5", {"key": "neighbor_maen"}, "'neighbor_maen'.* 'neighbor_mean'"),
        ("gene5", {"layer": "raw"}, "'raw'"),
        ("gene5", {"spatial_key": "centres"}, "'centres'"),
    ]:
        with pytest.raises(KeyError, match=message):
            compare(denoised, genes, **options)
    assert not plt.get_fignums()
