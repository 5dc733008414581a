"""Worked numbers of stLearn's SME, with image and expression components given, on seven spots of four genes."""

import numpy as np
import torch
from scipy import sparse

from stdenoise.methods.sme import adjust, average, most_similar, similarity
from stdenoise.spatial.graph import SpatialGraph, to_csr_tensor
from stdenoise.spatial.neighbors import neighborhoods

ARRAY = np.array([(0, 0), (0, 2), (0, 4), (1, 1), (1, 3), (2, 2), (4, 6)], dtype=float)
PIXELS = torch.tensor(ARRAY * [17.320508, 10])
X = [[4, 0, 1, 2], [3, 1, 0, 2], [0, 5, 1, 0], [2, 0, 0, 3], [1, 4, 2, 0], [0, 2, 3, 1], [5, 0, 2, 2]]
X_MORPHOLOGY = [[1, 0.2], [0.9, 0.4], [-0.3, 1], [0.8, 0.1], [0, 1.2], [0.5, 0.7], [1.1, -0.2]]
X_PCA = [
    [2, 0.5, -1],
    [1.5, 0.2, -0.8],
    [-1.2, 1, 0.9],
    [1.8, 0.1, -0.3],
    [-0.9, 1.4, 0.2],
    [0.1, -0.6, 1.1],
    [2.2, 0.4, -0.6],
]
# Release 0.4.0 takes three units of 20 pixels; the current one, whose slopes are both that of the columns, three of 14.142.
OLD, NEW = 60.0, 42.426407

MEANS = [
    [3.020895, 0.334108, 0.343393, 2.322499],
    [3.017273, 0.345316, 0.335979, 2.318705],
    [0.446420, 4.493550, 1.486440, 0.020010],
    [2.978740, 0.322470, 0.328135, 2.349395],
    [0.544464, 4.455536, 1.544464, 0],
    [-0.444056, 2.576573, 3.577741, 0.511771],
    [5, 0, 2, 2],
]
# Without the negative correlation that the old radius lets in.
FIFTH = [0, 2.108440, 2.927707, 0.963853]


def joined(radius):
    graph, _ = neighborhoods(PIXELS, None, radius=radius)
    return graph.with_self_loops()


def dense(graph, values):
    return graph.matrix(values).to_dense().numpy()


def weights_of(graph, *, clip_negative):
    return similarity(
        graph,
        torch.tensor(X_MORPHOLOGY, dtype=torch.float64),
        torch.tensor(X_PCA, dtype=torch.float64),
        clip_negative=clip_negative,
    )


def matrix_of(radius, *, clip_negative):
    graph = joined(radius)
    weights = weights_of(graph, clip_negative=clip_negative)
    return average(graph, weights, most_similar(graph, weights, 3))


def adjusted(radius, mode, *, clip_negative):
    values = to_csr_tensor(sparse.csr_matrix(X), dtype=torch.float64)
    return adjust(matrix_of(radius, clip_negative=clip_negative), values, mode).numpy()


def close(found, expected):
    # Printed to six digits, and one printed -.444056 is -.4440565.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.1e-6)


def test_pairs_within_the_radius():
    pairs = joined(OLD).to_scipy().toarray()
    assert (pairs[:6, :6] == 1).all()
    # The distance of 4 and 6 is the radius up to rounding; their images are dissimilar, so nothing depends on it.
    assert pairs[6, [5, 6]].all()
    assert not pairs[6, :4].any()
    np.testing.assert_array_equal(joined(NEW).to_scipy().toarray()[6], [0, 0, 0, 0, 0, 0, 1])


def test_image_and_expression_factors():
    everybody = SpatialGraph.from_scipy(sparse.csr_matrix(np.ones((7, 7)))).with_self_loops()
    morphology, expression = (torch.tensor(part, dtype=torch.float64) for part in (X_MORPHOLOGY, X_PCA))
    cosine = similarity(everybody, morphology, None, clip_negative=False)
    close(dense(everybody, cosine)[0], [1, 0.975716, 0, 0.997334, 0.196116, 0.729537, 0.929682])
    correlation = similarity(everybody, None, expression, clip_negative=False)
    close(dense(everybody, correlation)[0], [1, 0.997176, -0.845200, 0.941663, -0.478110, -0.585206, 0.986666])


def test_weights_of_the_first_spot():
    graph = joined(OLD)
    weights = weights_of(graph, clip_negative=False)
    close(dense(graph, weights)[0], [1, 0.972961, 0, 0.939152, -0.093765, -0.426929, 0])
    row = matrix_of(OLD, clip_negative=False).to_dense()[0]
    close(row, [0.343393, 0.334108, 0, 0.322499, 0, 0, 0])


def test_averages():
    for radius, clip_negative, fifth in (
        (OLD, False, MEANS[5]),
        (OLD, True, FIFTH),
        (NEW, False, FIFTH),
        (NEW, True, FIFTH),
    ):
        found = matrix_of(radius, clip_negative=clip_negative) @ torch.tensor(X, dtype=torch.float64)
        close(found, [*MEANS[:5], fifth, MEANS[6]])
    # The weights of the fifth spot, without negative ones.
    close(matrix_of(OLD, clip_negative=True).to_dense()[5], [0, 0, 0.036147, 0, 0, 0.963853, 0])


def test_normalised_and_imputed_values():
    old = adjusted(OLD, "normalize", clip_negative=False)
    close(old[0], [3.510447, 0.167054, 0.671697, 2.161249])
    close(old[2], [0.223210, 4.746775, 1.243220, 0.010005])
    close(old[5], [-0.222028, 2.288286, 3.288870, 0.755886])
    new = adjusted(NEW, "normalize", clip_negative=False)
    close(new[5], [0, 2.054220, 2.963853, 0.981927])
    np.testing.assert_array_equal(np.delete(new, 5, axis=0), np.delete(old, 5, axis=0))
    np.testing.assert_array_equal(adjusted(OLD, "normalize", clip_negative=True), new)
    old = adjusted(OLD, "impute", clip_negative=False)
    close(old[0], [4, 0.334108, 1, 2])
    close(old[2], [0.446420, 5, 1, 0.020010])
    close(old[5], [-0.444056, 2, 3, 1])
