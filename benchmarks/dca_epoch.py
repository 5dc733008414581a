"""Time and memory of one epoch of DCA, against the plain formulation.

Usage: python benchmarks/dca_epoch.py [--epochs 5] [--profile]

Each row is measured in a process of its own, so that its peak memory is its own, on one thread; seconds are CPU time. The data are those
of `dusted_epoch.py`: 3639 spots, 3000 genes, one count in ten not zero. An epoch is 114 steps of 32 spots, without validation.

- ours: the training loop of the package.
- plain: the same model in plain torch: dense standardised input, `nn.Linear` and `nn.BatchNorm1d`, the likelihood with lgamma on every
  entry, torch's autograd and `torch.optim.RMSprop`. Both start from the same weights and see the same batches.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from statistics import median

import numpy as np
from dusted_epoch import N_GENES, N_SPOTS, tissue

LIKELIHOODS = ("nb-conddisp", "zinb-conddisp")
VARIANTS = ("ours", "plain")
BATCH = 32


def model(likelihood):
    """Return the module of the package, and the generator that goes on to order the spots."""
    import torch

    from stdenoise.methods.dca.config import DCAConfig
    from stdenoise.methods.dca.module import DCAModule

    generator = torch.Generator().manual_seed(0)
    return DCAModule(N_GENES, DCAConfig(likelihood=likelihood), generator=generator), generator


def ours(likelihood, n_epochs):
    import torch

    from stdenoise.methods.dca.batches import make_batch, standardization
    from stdenoise.spatial.spots import Tissue
    from stdenoise.train.loop import train
    from stdenoise.train.patches import Patches
    from stdenoise.train.run import Run

    counts, _, _, _ = tissue()
    module, generator = model(likelihood)
    names = [f"gene{j}" for j in range(N_GENES)]
    data = Patches(Tissue().with_counts(counts, names, positions=None, device=torch.device("cpu")))
    scale, input_of_zero = standardization(data, N_SPOTS)
    times = []

    def take(rows):
        return make_batch(data.patch(rows.numpy(), len(rows)), scale, input_of_zero.float())

    def epoch(skip):
        times.append(time.process_time())
        order = torch.randperm(N_SPOTS, generator=generator)
        return ([take(rows)] for rows in order.split(BATCH)[skip:])

    history = train(
        module,
        module.loss,
        batches=epoch,
        generator=generator,
        optimizer="rmsprop",
        lr=1e-3,
        clip=5.0,
        clip_by="value",
        n_epochs=n_epochs,
        restore_best=False,
        run=Run(),
        description="dca",
    )
    return [*times, time.process_time()], history["loss"]


def plain(likelihood, n_epochs):
    import torch
    import torch.nn.functional as F
    from torch import nn

    counts, _, size_factors, _ = tissue()
    source, generator = model(likelihood)
    y = torch.tensor(counts.toarray())
    s = torch.tensor(size_factors)[:, None]
    x = torch.log1p(y / s)
    sd = x.std(0)
    x = (x - x.mean(0)) / torch.where(sd > 0, sd, 1.0)

    def linear(weight, bias):
        layer = nn.Linear(*weight.shape)
        layer.weight.data, layer.bias.data = weight.detach().t().contiguous(), bias.detach().clone()
        return layer

    body = nn.Sequential()
    for weight in source.layers:
        norm = nn.BatchNorm1d(weight.shape[1], momentum=0.01, eps=1e-3)
        norm.weight.requires_grad_(False)
        body.extend([linear(weight, torch.zeros(weight.shape[1])), norm, nn.ReLU()])
    heads = [source.mean, source.dispersion, *([source.dropout] if likelihood.startswith("zinb") else [])]
    heads = nn.ModuleList(linear(head[:-1], head[-1]) for head in heads)
    parameters = [p for p in [*body.parameters(), *heads.parameters()] if p.requires_grad]
    optimizer = torch.optim.RMSprop(parameters, lr=1e-3, alpha=0.9, eps=1e-7)
    eps = 1e-10

    def loss_of(rows):
        hidden, count = body(x[rows]), y[rows]
        logits = [head(hidden) for head in heads]
        mu = s[rows] * logits[0].clamp(math.log(1e-5), math.log(1e6)).exp()
        theta = F.softplus(logits[1]).clamp(1e-4, 1e4)
        nb = torch.lgamma(theta + eps) + torch.lgamma(count + 1) - torch.lgamma(count + theta + eps)
        nb = nb + (theta + count) * torch.log1p(mu / (theta + eps))
        nb = nb + count * (torch.log(theta + eps) - torch.log(mu + eps))
        if len(logits) == 2:
            return nb.mean()
        drop = torch.sigmoid(logits[2])
        zero = -torch.log(drop + (1 - drop) * (theta / (theta + mu + eps)) ** theta + eps)
        return torch.where(count < 1e-8, zero, nb - torch.log(1 - drop + eps)).mean()

    times, losses = [time.process_time()], []
    for _ in range(n_epochs):
        values = []
        for rows in torch.randperm(N_SPOTS, generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = loss_of(rows)
            loss.backward()
            nn.utils.clip_grad_value_(parameters, 5.0)
            optimizer.step()
            values.append(loss.item())
        losses.append(sum(values) / len(values))
        times.append(time.process_time())
    return times, losses


def measure(variant, args):
    """Run in a process of its own; print seconds per epoch, losses and peak memory in bytes."""
    import torch

    torch.set_num_threads(1)
    run = {"ours": ours, "plain": plain}[variant]
    if args.profile:
        with torch.profiler.profile() as profiler:
            run(args.likelihood, 1)
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40)
        print(table, file=sys.stderr)
    times, losses = run(args.likelihood, args.epochs)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": np.diff(times).tolist(), "losses": losses, "memory": memory}))


def run(variant, likelihood, args):
    arguments = [f"--likelihood={likelihood}", f"--epochs={args.epochs}", *(["--profile"] if args.profile else [])]
    child = subprocess.run(
        [sys.executable, __file__, "--child", variant, *arguments],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(child.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="show the operations of one epoch, on standard error")
    parser.add_argument("--likelihood", choices=LIKELIHOODS, help=argparse.SUPPRESS)
    parser.add_argument("--child", metavar="VARIANT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args.child, args)
        return

    import torch

    print(
        f"{N_SPOTS} spots x {N_GENES} genes, 64-32-64 hidden, batches of {BATCH}, one thread of {os.cpu_count()} cores"
    )
    print(f"{platform.machine()}, torch {torch.__version__}; median of {args.epochs} epochs (least, greatest)\n")
    print("| likelihood | variant | CPU seconds per epoch | times ours | memory, GB | first loss | last loss |")
    print("|---|---|---|---|---|---|---|")
    for likelihood in LIKELIHOODS:
        rows = {variant: run(variant, likelihood, args) for variant in VARIANTS}
        for variant, row in rows.items():
            seconds = row["seconds"]
            print(
                f"| {likelihood} | {variant} | {median(seconds):.3f} ({min(seconds):.3f}, {max(seconds):.3f}) "
                f"| {median(seconds) / median(rows['ours']['seconds']):.2f} | {row['memory'] / 1e9:.2f} "
                f"| {row['losses'][0]:.6f} | {row['losses'][-1]:.6f} |"
            )
        ratio = median(rows["plain"]["seconds"]) / median(rows["ours"]["seconds"])
        memory = rows["ours"]["memory"] / rows["plain"]["memory"]
        print(f"| {likelihood} | | **{ratio:.1f}x faster than plain** | | {memory:.2f} of plain | | |", flush=True)


if __name__ == "__main__":
    main()
