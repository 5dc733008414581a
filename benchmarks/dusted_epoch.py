"""Time and memory of one DUSTED training step, against the plain formulation and against its matrix products alone.

Usage: python benchmarks/dusted_epoch.py [--device cuda] [--steps 7] [--profile]

Each row is measured in a process of its own, so that its peak memory is its own. The data are simulated: 3639 spots on a
hexagonal array, 3000 genes, one count in ten not zero.

- ours: the training step of the package.
- plain: the same model as published: attention by message passing in gene space, one message per edge and gene, the gate
  on the data, and the likelihood with lgamma on every entry; torch_geometric's MessagePassing and torch's autograd.
- floor: the dense matrix products that the step cannot do without, and nothing else: input layer and heads, forward and
  backward.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from statistics import median

import numpy as np

N_SPOTS, N_GENES, N_HIDDEN = 3639, 3000, 512
LIKELIHOODS = ("zinb", "nb")
VARIANTS = ("ours", "plain", "floor")


def tissue():
    """Counts, log-normalised expression and size factors on a hexagonal array."""
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    rate = rng.gamma(0.3, 0.4, size=(N_SPOTS, N_GENES)).astype(np.float32)
    counts = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
    del rate
    total = np.asarray(counts.sum(axis=1)).ravel()
    lognorm = counts.copy()
    lognorm.data = np.log1p(counts.data * np.repeat(1e4 / total, np.diff(counts.indptr))).astype(np.float32)
    row, column = np.divmod(np.arange(N_SPOTS), 60)
    xy = np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(0.75)])
    return counts, lognorm, (total / np.median(total)).astype(np.float32), xy


def patches(device, n_hops):
    """The tissue, of which one patch holds all."""
    import torch

    from stdenoise.spatial.graph import SpatialGraph
    from stdenoise.spatial.radius import auto_radius_edges
    from stdenoise.spatial.spots import Tissue
    from stdenoise.train.patches import Patches

    counts, _, _, xy = tissue()
    graph = SpatialGraph.from_scipy(auto_radius_edges(xy, 6.0).distances, device=device)
    spots = Tissue(graphs={"spatial": graph}).with_counts(
        counts, [f"gene{j}" for j in range(N_GENES)], positions=None, device=torch.device(device)
    )
    return Patches(spots, n_hops=n_hops)


def ours(likelihood, device):
    import torch

    from stdenoise.methods import DUSTEDConfig
    from stdenoise.methods.dusted.module import DUSTEDModule, make_batch

    data = patches(device, 4)
    module = DUSTEDModule(N_GENES, DUSTEDConfig(likelihood=likelihood), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    module.set_pooled(data)
    (patch,) = data.cover()
    batch = make_batch(patch, per_entry=likelihood == "zinb")
    del data, patch
    return stepper(module, lambda: module.loss(batch), fused=True)


def plain(likelihood, device):
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch_geometric.nn import MessagePassing
    from torch_geometric.utils import softmax

    from stdenoise.spatial.radius import auto_radius_edges

    class Attention(MessagePassing):
        def __init__(self, n_in, n_out, weight=None):
            super().__init__(aggr="add", node_dim=0)
            self.weight = nn.Parameter(torch.empty(n_in, n_out)) if weight is None else weight
            self.u, self.v = nn.Parameter(torch.empty(n_out)), nn.Parameter(torch.empty(n_out))
            nn.init.xavier_normal_(self.weight, gain=1.414)
            for vector in (self.u, self.v):
                nn.init.normal_(vector, std=1.414 * n_out**-0.5)

        def forward(self, x, edge_index, scores=None, weight=None):
            projected = x @ (self.weight if weight is None else weight)
            scores = (projected @ self.u, projected @ self.v) if scores is None else scores
            out = self.propagate(edge_index, x=projected, p=scores[0], q=scores[1], size=(len(x), len(x)))
            return out, scores

        def message(self, x_j, p_j, q_i, index, size_i):
            return softmax(torch.sigmoid(p_j + q_i), index, num_nodes=size_i)[:, None] * x_j

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(N_GENES, N_GENES // 16), nn.ReLU(), nn.Linear(N_GENES // 16, N_GENES))
            self.first, self.second = Attention(N_GENES, N_HIDDEN), Attention(N_HIDDEN, 30)
            n_heads = 3 if likelihood == "zinb" else 2
            self.heads = nn.ModuleList(Attention(N_HIDDEN, N_GENES) for _ in range(n_heads))

        def forward(self, x, edge_index):
            gate = torch.sigmoid(self.mlp(x.mean(0)) + self.mlp(x.max(0).values))
            h, scores = self.first(x + 1.5 * (x * gate), edge_index)
            z, _ = self.second(F.elu(h), edge_index)
            h, _ = self.second(z, edge_index, scores=scores, weight=self.second.weight.t())
            h = F.elu(h)
            return [head(h, edge_index)[0] for head in self.heads]

    counts, lognorm, size_factors, xy = tissue()
    edges = auto_radius_edges(xy, 6.0).distances.tocoo()
    loops = np.arange(N_SPOTS)
    edge_index = torch.tensor(
        np.stack([np.append(edges.col, loops), np.append(edges.row, loops)]), dtype=torch.long, device=device
    )
    x, y = (torch.tensor(m.toarray(), device=device) for m in (lognorm, counts))
    s = torch.tensor(size_factors, device=device)[:, None]
    del counts, lognorm
    eps = 1e-10
    module = Plain().to(device)

    def loss():
        logits = module(x, edge_index)
        mu = torch.clamp(logits[0].exp(), 1e-5, 1e6) * s
        theta = torch.clamp(F.softplus(logits[1]), 1e-4, 1e4)
        nb = torch.lgamma(theta + eps) + torch.lgamma(y + 1) - torch.lgamma(y + theta + eps)
        nb = nb + (theta + y) * torch.log(1 + mu / (theta + eps))
        nb = nb + y * (torch.log(theta + eps) - torch.log(mu + eps))
        if likelihood == "nb":
            return nb.sum(1).mean()
        pi = torch.sigmoid(logits[2])
        positive = nb - torch.log(1 - pi + eps)
        zero = -torch.log(pi + (1 - pi) * torch.pow(theta / (mu + theta + eps), theta) + eps)
        return torch.where(y < 1e-8, zero, positive).mean()

    return stepper(module, loss, fused=False)


def stepper(module, loss_of, *, fused):
    import torch

    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, weight_decay=1e-4, fused=fused)

    def step():
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
        return loss.item()

    return step


def floor(likelihood, device):
    import torch

    x, w1 = torch.rand(N_SPOTS, N_GENES, device=device), torch.rand(N_GENES, N_HIDDEN, device=device)
    h, w = torch.rand(N_SPOTS, N_HIDDEN, device=device), torch.rand(N_HIDDEN, N_GENES, device=device)
    logits, d_h = torch.empty(N_SPOTS, N_GENES, device=device), torch.empty_like(h)
    d_w1, d_w = torch.empty_like(w1), torch.empty_like(w)

    def step():
        torch.mm(x, w1, out=d_h)
        torch.mm(x.t(), h, out=d_w1)
        for _ in range(3 if likelihood == "zinb" else 2):
            torch.mm(h, w, out=logits)
            torch.mm(logits, w.t(), out=d_h)
            torch.mm(h.t(), logits, out=d_w)
        return float(d_h[0, 0])

    return step


def measure(variant, likelihood, device, steps, profile):
    """Run in a process of its own; print seconds per step, first loss and peak memory in bytes."""
    import torch

    step = {"ours": ours, "plain": plain, "floor": floor}[variant](likelihood, device)
    first = step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    if profile:
        with torch.profiler.profile() as profiler:
            step()
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40)
        print(table, file=sys.stderr)
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "first": first, "memory": memory}))


def run(variant, likelihood, args):
    arguments = [f"--device={args.device}", f"--steps={args.steps}", *(["--profile"] if args.profile else [])]
    child = subprocess.run(
        [sys.executable, __file__, "--child", variant, likelihood, *arguments], stdout=subprocess.PIPE, check=True
    )
    return json.loads(child.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=7, help="timed steps after one that is not")
    parser.add_argument("--profile", action="store_true", help="show the operations of one step, on standard error")
    parser.add_argument("--child", nargs=2, metavar=("VARIANT", "LIKELIHOOD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(*args.child, args.device, args.steps, args.profile)
        return

    import torch

    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"{N_SPOTS} spots x {N_GENES} genes, {N_HIDDEN} hidden, {machine}, torch {torch.__version__}")
    print(f"median of {args.steps} steps (least, greatest); memory is the peak of the process\n")
    print("| likelihood | variant | seconds per step | times ours | memory, GB | first loss |")
    print("|---|---|---|---|---|---|")
    for likelihood in LIKELIHOODS:
        rows = {variant: run(variant, likelihood, args) for variant in VARIANTS}
        for variant, row in rows.items():
            seconds = row["seconds"]
            print(
                f"| {likelihood} | {variant} | {median(seconds):.3f} ({min(seconds):.3f}, {max(seconds):.3f}) "
                f"| {median(seconds) / median(rows['ours']['seconds']):.2f} | {row['memory'] / 1e9:.2f} "
                f"| {'' if variant == 'floor' else format(row['first'], '.4g')} |"
            )
        ratio = median(rows["plain"]["seconds"]) / median(rows["ours"]["seconds"])
        above = median(rows["ours"]["seconds"]) / median(rows["floor"]["seconds"])
        memory = rows["ours"]["memory"] / rows["plain"]["memory"]
        print(
            f"| {likelihood} | | **{ratio:.1f}x faster than plain, {above:.2f}x the floor** | | {memory:.2f} of plain | |"
        )


if __name__ == "__main__":
    main()
