"""Time and memory of one STAGATE training step, against the plain formulation.

Usage: python benchmarks/stagate_epoch.py [--device cuda] [--steps 7] [--threads 1] [--profile]

Each row is measured in a process of its own, so that its peak memory is its own. The data are those of `dusted_epoch.py`: 3639
spots on a hexagonal array, 3000 genes, one count in ten not zero.

- ours: the training step of the package.
- plain: the same model in plain torch: dense input, messages gathered along the edges, the whole reconstruction and its
  mean squared error, torch's autograd. Both start from the same weights.
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
from dusted_epoch import N_GENES, N_HIDDEN, N_SPOTS, patches, stepper, tissue

VARIANTS = ("ours", "plain")


def ours(device):
    import torch

    from stdenoise.methods.stagate import STAGATEConfig
    from stdenoise.methods.stagate.module import STAGATEModule, make_batch

    module = STAGATEModule(N_GENES, STAGATEConfig(), generator=torch.Generator().manual_seed(0)).to(device)
    (patch,) = patches(device, 2).cover()
    batch = make_batch(patch)
    del patch
    return stepper(module, lambda: module.loss(batch), fused=True)


def plain(device):
    import torch
    import torch.nn.functional as F

    from stdenoise.methods.stagate import STAGATEConfig
    from stdenoise.methods.stagate.module import STAGATEModule
    from stdenoise.spatial.radius import auto_radius_edges

    _, lognorm, _, xy = tissue()
    edges = auto_radius_edges(xy, 6.0).distances.tocoo()
    loops = np.arange(N_SPOTS)
    source = torch.tensor(np.append(edges.col, loops), dtype=torch.long, device=device)
    target = torch.tensor(np.append(edges.row, loops), dtype=torch.long, device=device)
    x = torch.tensor(lognorm.toarray(), device=device)
    # Only a holder of the same initial weights: nothing of it is called.
    module = STAGATEModule(N_GENES, STAGATEConfig(), generator=torch.Generator().manual_seed(0)).to(device)
    w1, u, v, w2 = module.encoder.weight, module.encoder.source, module.encoder.target, module.bottleneck

    def spread(weights, values):
        messages = weights[:, None] * values[source]
        return torch.zeros_like(values).index_add(0, target, messages)

    def loss():
        projected = x @ w1
        score = torch.sigmoid((projected @ u)[source] + (projected @ v)[target]).exp()
        weights = score / torch.zeros(N_SPOTS, device=device).index_add(0, target, score)[target]
        latent = F.elu(spread(weights, projected)) @ w2
        hidden = F.elu(spread(weights, latent @ w2.t()))
        return F.mse_loss(hidden @ w1.t(), x)

    return stepper(module, loss, fused=False)


def measure(variant, args):
    """Run in a process of its own; print seconds per step, first loss and peak memory in bytes."""
    import torch

    torch.set_num_threads(args.threads)
    step = {"ours": ours, "plain": plain}[variant](args.device)
    first = step()
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        last = step()
        seconds.append(time.perf_counter() - start)
    if args.profile:
        with torch.profiler.profile() as profiler:
            step()
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40)
        print(table, file=sys.stderr)
    if args.device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "first": first, "last": last, "memory": memory}))


def run(variant, args):
    arguments = [f"--device={args.device}", f"--steps={args.steps}", f"--threads={args.threads}"]
    arguments += ["--profile"] if args.profile else []
    child = subprocess.run(
        [sys.executable, __file__, "--child", variant, *arguments], stdout=subprocess.PIPE, check=True
    )
    return json.loads(child.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=7, help="timed steps after one that is not")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU")
    parser.add_argument("--profile", action="store_true", help="show the operations of one step, on standard error")
    parser.add_argument("--child", metavar="VARIANT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args.child, args)
        return

    import torch

    cpu = f"{args.threads} of {os.cpu_count()} cores, {platform.machine()}"
    machine = torch.cuda.get_device_name() if args.device == "cuda" else cpu
    print(f"{N_SPOTS} spots x {N_GENES} genes, {N_HIDDEN} hidden, {machine}, torch {torch.__version__}")
    print(f"median of {args.steps} steps (least, greatest); memory is the peak of the process\n")
    print("| variant | seconds per step | times ours | memory, GB | first loss | last loss |")
    print("|---|---|---|---|---|---|")
    rows = {variant: run(variant, args) for variant in VARIANTS}
    for variant, row in rows.items():
        seconds = row["seconds"]
        print(
            f"| {variant} | {median(seconds):.3f} ({min(seconds):.3f}, {max(seconds):.3f}) "
            f"| {median(seconds) / median(rows['ours']['seconds']):.2f} | {row['memory'] / 1e9:.2f} "
            f"| {row['first']:.7g} | {row['last']:.7g} |"
        )
    ratio = median(rows["plain"]["seconds"]) / median(rows["ours"]["seconds"])
    memory = rows["ours"]["memory"] / rows["plain"]["memory"]
    print(f"| | **{ratio:.1f}x faster than plain** | | {memory:.2f} of plain | | |")


if __name__ == "__main__":
    main()
