"""The DCA network: an autoencoder with count heads."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdenoise.methods.dca.batches import Batch
from stdenoise.methods.dca.config import DCAConfig
from stdenoise.nn.counts import activate, heads_loss

# Bounds on the logarithm of a dispersion that belongs to a gene.
_LOG_DISPERSION_RANGE = (math.log(1e-3), math.log(1e4))


class BatchNorm(nn.Module):
    """Batch normalisation as in Keras: a trainable shift, no scale, running averages of mean and biased variance.

    Parameters
    ----------
    width
        Number of columns.
    """

    momentum = 0.99
    eps = 1e-3
    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_variance", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch in training, by the running averages in evaluation."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_variance, None, self.shift, eps=self.eps)
        out, mean, inverse_sd = torch.native_batch_norm(x, None, self.shift, None, None, True, 0.0, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, 1 - self.momentum)
            self.running_variance.lerp_(inverse_sd.pow(-2).sub_(self.eps), 1 - self.momentum)
        return out


class DCAModule(nn.Module):
    """The network of DCA.

    Parameters
    ----------
    n_genes
        Number of genes.
    config
        Hyperparameters.
    generator
        Source of the initial weights.
    """

    input_scale: Tensor
    input_of_zero: Tensor

    def __init__(self, n_genes: int, config: DCAConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        # How the input is standardised belongs to the trained network.
        self.register_buffer("input_scale", torch.zeros(n_genes, dtype=torch.float64))
        self.register_buffer("input_of_zero", torch.zeros(n_genes))
        widths = [n_genes, *config.hidden]
        # Without biases: the batch normalisation that follows takes any constant away.
        self.layers = nn.ParameterList(
            nn.Parameter(glorot_uniform(a, b, generator=generator)) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(BatchNorm(width) for width in config.hidden)
        self.likelihood, self.ridge = config.likelihood, config.ridge
        shared = self.likelihood.endswith("shared")

        def head(n_out: int) -> nn.Parameter:
            # The last row is the bias.
            return nn.Parameter(F.pad(glorot_uniform(widths[-1], n_out, generator=generator), (0, 0, 0, 1)))

        self.mean = head(n_genes)
        if self.likelihood in ("nb", "zinb"):
            self.dispersion = nn.Parameter(torch.zeros(n_genes))
        elif self.likelihood != "poisson":
            self.dispersion = head(1 if shared else n_genes)
        if self.likelihood == "zinb-elempi":
            # A vector counts as n in and n out, in Keras.
            limit = math.sqrt(3 / n_genes)
            self.slope = nn.Parameter((2 * torch.rand(n_genes, generator=generator) - 1) * limit)
            self.offset = nn.Parameter(torch.zeros(n_genes))
        elif self.likelihood.startswith("zinb"):
            self.dropout = head(1 if shared else n_genes)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent `(n_spots, n_latent)`, before its normalisation, and the last hidden layer."""
        latent = x
        for number, (weight, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            linear = x @ weight
            if number == len(self.layers) // 2:
                latent = linear
            x = F.relu(norm(linear))
        return latent, x

    def heads(self, hidden: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return an input and a weight for each of mean, dispersion and dropout; their products are the logits."""
        hidden = F.pad(hidden, (0, 1), value=1.0)
        inputs: list[Tensor] = [hidden]
        weights: list[Tensor] = [self.mean]

        def add(weight: Tensor) -> None:
            per_spot = weight.shape[1] == 1
            inputs.append(hidden @ weight if per_spot else hidden)
            weights.append(weight.new_ones(1, self.mean.shape[1]) if per_spot else weight)

        if self.likelihood in ("nb", "zinb"):
            dispersion = self.dispersion.clamp(*_LOG_DISPERSION_RANGE).exp()
            # The likelihood applies a softplus; this is its inverse.
            weights.append((dispersion + torch.log(-torch.expm1(-dispersion)))[None])
            inputs.append(hidden[:, -1:])
        elif self.likelihood != "poisson":
            add(self.dispersion)
        if self.likelihood == "zinb-elempi":
            # Gene by gene a linear function of the mean's logit, hence another head on the same input.
            inputs.append(hidden)
            weights.append(self.mean * self.slope + F.pad(self.offset[None], (0, 0, len(self.mean) - 1, 0)))
        elif self.likelihood.startswith("zinb"):
            add(self.dropout)
        return inputs, weights

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the entries of a batch, a scalar."""
        inputs, weights = self.heads(self.encode(batch.x)[1])
        scale = 1.0 / batch.x.numel()
        loss = heads_loss(inputs, weights, [batch.block], batch.size_factors, scale=scale)
        if self.ridge:
            loss = loss + self.ridge * scale * torch.sigmoid(inputs[2] @ weights[2]).square().sum()
        return loss

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return the latent and the list of mean, dispersion and dropout, as many as there are, each `(n_spots, n_genes)`."""
        self.eval()
        latent, hidden = self.encode(batch.x)
        logits = [x @ w for x, w in zip(*self.heads(hidden), strict=True)]
        return latent, activate(logits, batch.size_factors)


def glorot_uniform(n_in: int, n_out: int, *, generator: torch.Generator) -> Tensor:
    """Draw a matrix uniformly between plus and minus `sqrt(6 / (n_in + n_out))`."""
    return (2 * torch.rand(n_in, n_out, generator=generator) - 1) * math.sqrt(6 / (n_in + n_out))
