"""Poisson, negative binomial and zero-inflated negative binomial heads.

Logits, loss and gradient are one operation over blocks of rows: a block's logits are computed, replaced in place by their
gradients, and multiplied straight into the gradients of weights and inputs. No array of spots x genes exists, so memory
does not grow with the number of heads.

At a zero count the negative binomial term is `theta * log1p(mu / theta)`; `lgamma` and `digamma` run on the non-zero
entries only, in double precision, since `lgamma(theta) - lgamma(y + theta)` cancels at large `theta`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-10
MEAN_RANGE = (1e-5, 1e6)
DISPERSION_RANGE = (1e-4, 1e4)
# The same bounds on the logits: clamping before the exponential keeps the gradient finite.
_LOG_MEAN_RANGE = (math.log(MEAN_RANGE[0]), math.log(MEAN_RANGE[1]))
_DISPERSION_LOGIT_RANGE = (math.log(math.expm1(DISPERSION_RANGE[0])), DISPERSION_RANGE[1])

BLOCK_ENTRIES = 2**20
"""Logits per head and block: large enough for full matrix speed, small enough to stay in cache."""


@dataclass(frozen=True)
class CountBlock:
    """The non-zero counts of consecutive spots, as positions in the flattened block."""

    start: int
    stop: int
    position: Tensor
    count: Tensor
    log_factorial: Tensor


def count_blocks(counts: Tensor, block_entries: int = BLOCK_ENTRIES) -> list[CountBlock]:
    """Cut a CSR tensor of counts, shape `(n_spots, n_genes)`, into blocks of rows."""
    n_spots, n_genes = counts.shape
    crow, col, values = counts.crow_indices(), counts.col_indices(), counts.values()
    size = max(1, block_entries // max(1, n_genes))
    bounds = [*range(0, n_spots, size), n_spots]
    pointers = crow[bounds].tolist()
    blocks = []
    for start, stop, lo, hi in zip(bounds, bounds[1:], pointers, pointers[1:], strict=False):
        rows = torch.repeat_interleave(torch.arange(stop - start, device=col.device), crow[start : stop + 1].diff())
        count = values[lo:hi].double()
        blocks.append(CountBlock(start, stop, rows * n_genes + col[lo:hi], count, torch.lgamma(count + 1).sum()))
    return blocks


def activate(logits: Sequence[Tensor], size_factors: Tensor) -> list[Tensor]:
    """Turn logits into mean, dispersion and dropout, as many as there are logits.

    Parameters
    ----------
    logits
        One to three tensors of shape `(n_spots, n_genes)`.
    size_factors
        Shape `(n_spots,)`; scales the mean after the clamp.

    Returns
    -------
    Mean (count scale), inverse dispersion and dropout probability, each of the shape of the logits.
    """
    mean = logits[0].clamp(*_LOG_MEAN_RANGE).exp_().mul_(size_factors[:, None])
    dispersion = [F.softplus(x).clamp_(*DISPERSION_RANGE) for x in logits[1:2]]
    return [mean, *dispersion, *(torch.sigmoid(x) for x in logits[2:])]


def count_loss_(logits: Sequence[Tensor], block: CountBlock, size_factors: Tensor) -> Tensor:
    """Sum the negative log-likelihood of a block and replace its logits by the gradient of that sum.

    Parameters
    ----------
    logits
        Mean logits (Poisson), mean and dispersion logits (negative binomial), or these and dropout logits (zero-inflated),
        each contiguous, of shape `(stop - start, n_genes)`. Overwritten.
    block
        The counts.
    size_factors
        Shape `(stop - start,)`.

    Returns
    -------
    A double-precision scalar.
    """
    if len(logits) == 1:
        return _poisson_loss_(logits[0], block, size_factors)
    log_mean, disp_logit = logits[0], logits[1]
    mu, theta = activate(logits[:2], size_factors)
    # Every entry as if its count were zero: f = theta log1p(mu / theta), with r = mu / (mu + theta).
    log_ratio = (mu / theta).log1p_()
    r = mu / (mu + theta)
    d_log_mean = theta * r
    d_theta = log_ratio - r
    zero_term = log_ratio.mul_(theta)

    at = block.position
    mu_at, theta_at, f_at = (x.view(-1)[at].double() for x in (mu, theta, zero_term))
    y = block.count
    total = mu_at + theta_at
    nonzero_term = f_at + torch.lgamma(theta_at) - torch.lgamma(y + theta_at) + y * (total.log() - (mu_at + EPS).log())
    slope_mean = mu_at * (theta_at + y) / total - y * mu_at / (mu_at + EPS)
    slope_theta = d_theta.view(-1)[at].double() + torch.digamma(theta_at) - torch.digamma(y + theta_at) + y / total

    if len(logits) == 2:
        loss = zero_term.sum(dtype=torch.float64) + (nonzero_term - f_at).sum()
    else:
        drop_logit = logits[2]
        drop = torch.sigmoid(drop_logit)
        nb_zero = zero_term.neg_().exp_()  # probability of a zero before dropout
        keep = 1 - drop
        chance = torch.addcmul(drop, keep, nb_zero).add_(EPS)
        share = (keep * nb_zero).div_(chance)
        d_log_mean.mul_(share)
        d_theta.mul_(share)
        d_drop = nb_zero.sub_(1).mul_(drop).mul_(keep).div_(chance)

        log_chance = chance.log_()
        keep_at = torch.sigmoid(-drop_logit.view(-1)[at].double())
        nonzero_term = nonzero_term - (keep_at + EPS).log()
        loss = nonzero_term.sum() + log_chance.view(-1)[at].double().sum() - log_chance.sum(dtype=torch.float64)
        d_drop.view(-1)[at] = ((1 - keep_at) * keep_at / (keep_at + EPS)).to(d_drop.dtype)
        drop_logit.copy_(d_drop)

    d_log_mean.view(-1)[at] = slope_mean.to(d_log_mean.dtype)
    d_theta.view(-1)[at] = slope_theta.to(d_theta.dtype)
    d_theta.mul_(torch.sigmoid(disp_logit))
    # Beyond the clamps the parameter no longer moves with its logit.
    torch.ops.aten.hardtanh_backward.grad_input(d_log_mean, log_mean, *_LOG_MEAN_RANGE, grad_input=log_mean)
    torch.ops.aten.hardtanh_backward.grad_input(d_theta, disp_logit, *_DISPERSION_LOGIT_RANGE, grad_input=disp_logit)
    return loss + block.log_factorial


def _poisson_loss_(log_mean: Tensor, block: CountBlock, size_factors: Tensor) -> Tensor:
    (mu,) = activate([log_mean], size_factors)
    mu_at, y = mu.view(-1)[block.position].double(), block.count
    loss = mu.sum(dtype=torch.float64) - (y * (mu_at + EPS).log()).sum()
    mu.view(-1)[block.position] = (mu_at - y * mu_at / (mu_at + EPS)).to(mu.dtype)
    torch.ops.aten.hardtanh_backward.grad_input(mu, log_mean, *_LOG_MEAN_RANGE, grad_input=log_mean)
    return loss + block.log_factorial


class _HeadsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        blocks: Sequence[CountBlock],
        size_factors: Tensor,
        scale: float,
        dtype: torch.dtype,
        *heads: Tensor,
    ) -> Tensor:
        n_heads = len(heads) // 2
        inputs, weights = ([x.to(dtype) for x in part] for part in (heads[:n_heads], heads[n_heads:]))
        d_inputs = [torch.empty_like(x) for x in inputs]
        d_weights = [torch.zeros_like(w) for w in heads[n_heads:]]
        n_genes = weights[0].shape[1]
        height = max(block.stop - block.start for block in blocks)
        buffers = [x.new_empty(height, n_genes) for x in inputs]
        loss = torch.zeros((), dtype=torch.float64, device=size_factors.device)
        for block in blocks:
            rows = slice(block.start, block.stop)
            logits = [
                torch.mm(x[rows], w, out=buffer[: block.stop - block.start])
                for x, w, buffer in zip(inputs, weights, buffers, strict=True)
            ]
            # Outside the products, always in the precision of the weights.
            slopes = [x.to(heads[0].dtype) for x in logits]
            loss += count_loss_(slopes, block, size_factors[rows])
            for x, w, d_x, d_w, slope in zip(inputs, weights, d_inputs, d_weights, slopes, strict=True):
                d_logit = slope.to(dtype)
                torch.mm(d_logit, w.t(), out=d_x[rows])
                if dtype == d_w.dtype:
                    d_w.addmm_(x[rows].t(), d_logit)
                else:
                    d_w += x[rows].t() @ d_logit
        ctx.scale = scale
        ctx.save_for_backward(*(d_x.to(heads[0].dtype) for d_x in d_inputs), *d_weights)
        return (loss * scale).to(heads[0].dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = grads[0] * ctx.scale
        return None, None, None, None, *(g * factor for g in ctx.saved_tensors)


def heads_loss(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    blocks: Sequence[CountBlock],
    size_factors: Tensor,
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Negative log-likelihood of counts under linear heads, with its gradient computed on the way.

    Parameters
    ----------
    inputs
        One tensor of shape `(n_spots, k)` per head: mean; dispersion, except for Poisson; dropout, for the zero-inflated likelihood.
    weights
        One tensor of shape `(k, n_genes)` per head.
    blocks
        The counts of all spots, from `count_blocks`.
    size_factors
        Shape `(n_spots,)`.
    scale
        Factor on the sum over all entries (for instance `1 / n_spots`).
    dtype
        Precision of the products with the weights, such as `torch.bfloat16`; that of the weights if not given.

    Returns
    -------
    A scalar, differentiable once in `inputs` and `weights`.
    """
    dtype = dtype or weights[0].dtype
    return _HeadsLoss.apply(blocks, size_factors, scale, dtype, *inputs, *weights)  # type: ignore[no-any-return, no-untyped-call]
