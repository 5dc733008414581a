import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import sparse

import stdenoise as st


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    """Fail when a plot is shown, and close the figures."""
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    yield
    plt.close("all")


@pytest.fixture
def denoised(hexagonal, small):
    st.tl.denoise(hexagonal, **small)
    return hexagonal


def drawn(ax):
    return np.asarray(ax.collections[0].get_array())


def log_per_10_000(values):
    values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=float)
    return np.log1p(1e4 * values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12))


@pytest.mark.parametrize(("genes", "n_rows"), [("gene1", 1), (["gene1"], 1), (["gene3", "gene1", "gene8"], 3)])
def test_axes_have_one_row_per_gene(denoised, genes, n_rows):
    axes = st.pl.compare(denoised, genes)
    assert isinstance(axes, np.ndarray)
    assert axes.shape == (n_rows, 2)
    names = [genes] if isinstance(genes, str) else genes
    titles = [[ax.get_title() for ax in row] for row in axes]
    assert titles == [[f"{name}, raw", f"{name}, dusted"] for name in names]


def test_values_are_normalised_on_both_sides(denoised):
    axes = st.pl.compare(denoised, ["gene5", "gene2"])
    raw, mean = log_per_10_000(denoised.X), log_per_10_000(denoised.layers["dusted_mean"])
    for row, position in zip(axes, [5, 2], strict=True):
        np.testing.assert_allclose(drawn(row[0]), raw[:, position], rtol=1e-5)
        np.testing.assert_allclose(drawn(row[1]), mean[:, position], rtol=1e-5)


def test_values_are_drawn_as_they_are_on_demand(denoised):
    axes = st.pl.compare(denoised, "gene5", normalize=False)
    np.testing.assert_allclose(drawn(axes[0, 0]), denoised.X.toarray()[:, 5])
    np.testing.assert_allclose(drawn(axes[0, 1]), denoised.layers["dusted_mean"][:, 5])


def test_a_result_on_the_log_scale_is_not_logged_again(denoised):
    denoised.uns["dusted"]["scale"] = "log1p"
    axes = st.pl.compare(denoised, "gene5")
    np.testing.assert_allclose(drawn(axes[0, 0]), log_per_10_000(denoised.X)[:, 5], rtol=1e-5)
    np.testing.assert_allclose(drawn(axes[0, 1]), denoised.layers["dusted_mean"][:, 5])


def test_some_genes_are_normalised_over_those_modelled(hexagonal, small):
    genes = ["gene1", "gene7", "gene10"]
    st.tl.denoise(hexagonal, genes=genes, key_added="mine", **small)
    axes = st.pl.compare(hexagonal, "gene7", key="mine")
    assert axes[0, 1].get_title() == "gene7, mine"
    np.testing.assert_allclose(drawn(axes[0, 0]), log_per_10_000(hexagonal[:, genes].X)[:, 1], rtol=1e-5)
    np.testing.assert_allclose(drawn(axes[0, 1]), log_per_10_000(hexagonal.obsm["mine_mean"])[:, 1], rtol=1e-5)


def test_raw_counts_are_those_that_were_denoised(hexagonal, small):
    hexagonal.layers["raw_counts"] = hexagonal.X.copy()
    hexagonal.X = hexagonal.X * 0
    st.tl.denoise(hexagonal, layer="raw_counts", **small)
    expected = hexagonal.layers["raw_counts"].toarray()[:, 5]
    np.testing.assert_allclose(drawn(st.pl.compare(hexagonal, "gene5", normalize=False)[0, 0]), expected)


def test_another_layer_as_raw(denoised):
    axes = st.pl.compare(denoised, "gene5", layer="true_mean", normalize=False)
    np.testing.assert_allclose(drawn(axes[0, 0]), denoised.layers["true_mean"][:, 5])


@pytest.mark.parametrize(
    "form", [lambda x: x.toarray(), lambda x: x.tocsc(), sparse.csr_array, lambda x: x.astype(int)]
)
def test_form_of_the_counts_does_not_matter(denoised, form):
    expected = log_per_10_000(denoised.X)[:, 5]
    denoised.X = form(denoised.X)
    np.testing.assert_allclose(drawn(st.pl.compare(denoised, "gene5")[0, 0]), expected, rtol=1e-5)


def test_spots_lie_at_their_coordinates_with_y_downwards(denoised):
    for ax in st.pl.compare(denoised, "gene5").flat:
        np.testing.assert_allclose(ax.collections[0].get_offsets(), denoised.obsm["spatial"])
        assert ax.yaxis_inverted()
        assert ax.get_aspect() == 1


def test_the_first_two_of_three_dimensions_are_drawn(volume, small):
    st.tl.denoise(volume, **small)
    axes = st.pl.compare(volume, "gene5")
    np.testing.assert_allclose(axes[0, 0].collections[0].get_offsets(), volume.obsm["spatial"][:, :2])


def test_coordinates_under_another_key(denoised):
    denoised.obsm["centres"] = 2 * denoised.obsm["spatial"]
    axes = st.pl.compare(denoised, "gene5", spatial_key="centres")
    np.testing.assert_allclose(axes[0, 0].collections[0].get_offsets(), denoised.obsm["centres"])


def test_coordinates_that_the_graph_fell_back_to(hexagonal, small):
    hexagonal.obsm["X_spatial"] = hexagonal.obsm["spatial"]
    del hexagonal.obsm["spatial"]
    st.tl.denoise(hexagonal, **small)
    axes = st.pl.compare(hexagonal, "gene5")
    np.testing.assert_allclose(axes[0, 0].collections[0].get_offsets(), hexagonal.obsm["X_spatial"])


def test_colours_reach_from_the_smallest_value_to_the_99th_percentile(denoised):
    for ax in st.pl.compare(denoised, ["gene5", "gene2"]).flat:
        low, high = ax.collections[0].get_clim()
        assert low == drawn(ax).min()
        assert high == pytest.approx(np.percentile(drawn(ax), 99))


def test_a_gene_in_one_of_many_spots_is_seen(small):
    denoised = st.datasets.tissue(n_spots=150, n_genes=10)
    st.pp.spatial_graph(denoised, radius=120)
    st.tl.denoise(denoised, **small)
    counts = denoised.X.toarray()
    counts[:, 5] = 0
    counts[30, 5] = 4
    denoised.X = counts
    assert st.pl.compare(denoised, "gene5", normalize=False)[0, 0].collections[0].get_clim() == (0, 4)


def test_every_oddity_at_once(irregular, small):
    st.tl.denoise(irregular, **small)
    axes = st.pl.compare(irregular, ["gene3", "gene4"])
    axes[0, 0].figure.canvas.draw()
    assert (drawn(axes[0, 0]) == 0).all()


def test_size_and_colour_map(denoised):
    dots = st.pl.compare(denoised, "gene5", size=7.0, cmap="magma")[0, 1].collections[0]
    assert dots.get_sizes() == [7.0]
    assert dots.get_cmap().name == "magma"


def test_nothing_is_written(denoised, unchanged):
    with unchanged(denoised):
        st.pl.compare(denoised, ["gene5", "gene2"])


@pytest.mark.parametrize(
    ("genes", "arguments", "message"),
    [
        ("gnee5", {}, r"genes \['gnee5'\] are not among the 12 genes modelled in 'dusted'. Did you mean 'gene5'"),
        (["gene5", "x"], {}, r"genes \['x'\] are not among the 12 genes"),
        ([], {}, "not among the 12 genes"),
        ("gene5", {"key": "dustd"}, "'dustd' is not in the denoised results of adata, which has 'dusted'"),
        ("gene5", {"layer": "raw"}, "'raw' is not in adata.layers, which has"),
        ("gene5", {"spatial_key": "centres"}, "'centres' is not in adata.obsm, which has 'spatial'"),
    ],
)
def test_bad_arguments(denoised, genes, arguments, message):
    with pytest.raises(KeyError, match=message):
        st.pl.compare(denoised, genes, **arguments)
    assert not plt.get_fignums()


def test_a_gene_that_was_not_modelled(hexagonal, small):
    st.tl.denoise(hexagonal, genes=["gene1", "gene2"], **small)
    with pytest.raises(KeyError, match=r"genes \['gene3'\] are not among the 2 genes modelled"):
        st.pl.compare(hexagonal, ["gene1", "gene3"])
