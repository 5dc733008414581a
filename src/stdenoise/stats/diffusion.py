"""Random walks between similar points: a kernel whose width follows the density, and the walk it drives."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.neighbors import nearest_neighbors

# Entries of the dense values that are diffused at a time: 4 MB in single precision, which stay in cache.
_BLOCK = 1 << 20


def adaptive_kernel(points: Tensor, *, knn: int, knn_max: int, decay: float | None, thresh: float) -> Tensor:
    """Similarity of each point to its nearest others: `exp(-(distance / bandwidth) ** decay)`, made symmetric."""
    n_points = len(points)
    index, distance = nearest_neighbors(points.double(), min(knn if decay is None else knn_max, n_points - 1))
    if decay is None:
        weights = torch.ones_like(distance)
    else:
        # A point with coincident others has no width of its own: only those are similar to it.
        bandwidth = distance[:, :knn][:, -1:].clamp(min=torch.finfo(distance.dtype).eps)
        weights = torch.exp(-((distance / bandwidth) ** decay))
    kept = weights >= thresh
    itself = torch.arange(n_points, device=points.device)
    row, col, half = itself[:, None].expand_as(index)[kept], index[kept], weights[kept] / 2
    # Both directions and the diagonal; what meets at one place is added up.
    places = torch.stack([torch.cat([row, col, itself]), torch.cat([col, row, itself])])
    values = torch.cat([half, half, half.new_ones(n_points)])
    return torch.sparse_coo_tensor(places, values, (n_points, n_points)).coalesce().to_sparse_csr()


def diffusion_operator(points: Tensor, *, knn: int, knn_max: int, decay: float | None, thresh: float) -> Tensor:
    """Chances of the steps of a random walk along the adaptive kernel."""
    kernel = adaptive_kernel(points, knn=knn, knn_max=knn_max, decay=decay, thresh=thresh)
    crow, col = kernel.crow_indices(), kernel.col_indices()
    if len(col) < torch.iinfo(torch.int32).max:
        crow, col = crow.int(), col.int()
    pattern = SpatialGraph(crow, col)
    return pattern.matrix(kernel.values() / pattern.row_sum(kernel.values())[pattern.row.long()])


def diffuse_(
    operator: Tensor, values: Tensor, n_steps: int, *, progress: bool = False, label: str = "diffusion"
) -> Tensor:
    """Replace values by their expectation after some steps of the walk, a block of columns at a time.

    The operator is applied again and again: its powers, which fill up, are never formed.
    """
    operator = operator.to(values.dtype)
    columns = values.split(max(1, _BLOCK // max(len(values), 1)), dim=1)
    for block in tqdm(columns, desc=label, unit="block", disable=not progress):
        diffused = block.contiguous()
        for _ in range(n_steps):
            diffused = operator @ diffused
        block.copy_(diffused)
    return values
