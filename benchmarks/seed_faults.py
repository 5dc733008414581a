"""Seed small faults into the source, one at a time, and ask which of them the tests notice.

Each fault is a piece of text that stands once in a file of `src/stdenoise`, and what replaces it. For each, the tests that lie beside it
are run first, then all others, until one fails. A fault that survives all of them is one that nobody would notice.

    python benchmarks/seed_faults.py                     # all of them: hours
    python benchmarks/seed_faults.py halo seed           # those whose name has one of these words
    python benchmarks/seed_faults.py --check             # whether each piece of text stands once
    python benchmarks/seed_faults.py --beside            # only the tests that lie beside, not all others: minutes
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    """A change of the source that must not go unnoticed; `beside` are the tests to ask first."""

    name: str
    file: str
    old: str
    new: str
    beside: tuple[str, ...] = ()


# One line for each; grouped by file.
# fmt: off
FAULTS = [
    Fault('command line: layer not passed on', '__main__.py', '            "layer": layer,\n            "graph_key"', '            "layer": None,\n            "graph_key"', ('test_cli.py',)),
    Fault('command line: seed not passed on', '__main__.py', '            "seed": seed,\n', '            "seed": 0,\n', ('test_cli.py',)),
    Fault('command line: the graph is built from other coordinates', '__main__.py', '                spatial_key=spatial_key,\n                key_added=graph_key,', '                key_added=graph_key,', ('test_cli.py',)),
    Fault('command line: the graph is built across libraries', '__main__.py', '                library_key=library_key,\n                spatial_key=spatial_key,\n                key_added', '                spatial_key=spatial_key,\n                key_added', ('test_cli.py',)),
    Fault('command line: an interruption ends with another code', '__main__.py', '        sys.exit(130)', '        sys.exit(1)', ('test_cli.py',)),
    Fault('command line: all values of --set are text', '__main__.py', '    return name, _literal(value)', '    return name, value', ('test_cli.py',)),
    Fault('command line: spaces around names of genes kept', '__main__.py', 'chosen = [name.strip() for name in genes.split(",")]', 'chosen = genes.split(", ")', ('test_cli.py',)),
    Fault('command line: a radius beside a graph is ignored', '__main__.py', '        elif radius is not None:\n', '        elif False:\n', ('test_cli.py',)),
    Fault('command line: highly variable genes of X, not of the layer', '__main__.py', 'mark_highly_variable(adata, n_top_genes, layer)', 'mark_highly_variable(adata, n_top_genes, None)', ('test_cli.py',)),
    Fault('command line: the log is always shown', '__main__.py', '    if verbose:\n', '    if True:\n', ('test_cli.py',)),
    Fault('command line: every process prints the summary', '__main__.py', '        if speaks_for_all():\n            key = ', '        if True:\n            key = ', ('test_cli.py',)),
    Fault('command line: a method beside a model is ignored', '__main__.py', '    if method not in (None, trained.info.name):', '    if False:', ('test_cli.py',)),
    Fault('checks: the lower limit is exclusive', '_base/checks.py', '(minimum is not None and value < minimum)', '(minimum is not None and value <= minimum)', ('base',)),
    Fault('ALRA: quantile above 1 accepted', '_base/config.py', 'Field(ge=0, le=1)]', 'Field(ge=0, le=2)]', ('methods', 'tl')),
    Fault('device: machines and processes swapped', '_base/device.py', 'return (local, world // local) if world > 1 else None', 'return (world // local, local) if world > 1 else None', ('base',)),
    Fault('a file is written in place', '_base/files.py', '            fresh.replace(path)\n        except BaseException:', '            shutil.copy(fresh, path)\n        except BaseException:', ('base', 'tl')),
    Fault('checkpoint: file not flushed to the disk', '_base/files.py', '                os.fsync(file.fileno())\n', '                pass\n', ('base', 'train')),
    Fault('files: a folder left aside is not put back', '_base/files.py', '        replaced.rename(target)\n        logger.warning', '        logger.warning', ('base',)),
    Fault('files: after a failed rename the old one stays aside', '_base/files.py', '                replaced.rename(path)\n            raise', '                pass\n            raise', ('base',)),
    Fault('files: what came meanwhile is replaced', '_base/files.py', '            # Much can come there in the hours of a training.\n            check_replaceable(path, kind)\n', '            pass\n', ('base', 'train')),
    Fault('files: folders do not change places in one step', '_base/files.py', 'return bool(rename(*places, _SWAP) == 0)', 'return False', ('base',)),
    Fault('memory: a unit with an i counts thousands', '_base/memory.py', 'base = 1024 if "I" in unit else 1000', 'base = 1000', ('base',)),
    Fault('memory: only the innermost control group', '_base/memory.py', 'for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):', 'for folder in (group,):', ('base',)),
    Fault('memory: pages of files count as used', '_base/memory.py', 'yield max(0, limit - used + (int(cached[1]) if cached else 0))', 'yield max(0, limit - used)', ('base',)),
    Fault('out may be what is read', '_base/paths.py', 'if mine[0] == its[0]:', 'if False:', ('base', 'tl')),
    Fault('paths: an output inside an input', '_base/paths.py', 'if mine[0] in its or its[0] in mine:', 'if mine[0] in its:', ('base',)),
    Fault('paths: an output around an input', '_base/paths.py', 'if mine[0] in its or its[0] in mine:', 'if its[0] in mine:', ('base',)),
    Fault('paths: outputs may meet each other', '_base/paths.py', '        places.append((role, path, mine))\n', '', ('base',)),
    Fault('paths: hard links and mounts are other files', '_base/paths.py', 'found.append((status.st_dev, status.st_ino, *place.relative_to(there).parts))', 'found.append((str(place),))', ('base',)),
    Fault("paths: other files in an AnnData's folder", '_base/paths.py', '    if any(not any((entry / name).is_file() for name in _ZARR_FILES) for entry in inner):\n        return False\n', '', ('base',)),
    Fault('paths: any HDF5 is an AnnData', '_base/paths.py', 'return ANNDATA if encoding == "anndata" or {"obs", "var"} <= set(file) else "file"', 'return ANNDATA', ('base',)),
    Fault('paths: any archive of torch is a checkpoint', '_base/paths.py', 'return str(kind) if header == "stdenoise" else None', 'return CHECKPOINT', ('base',)),
    Fault('paths: mount points are replaced', '_base/paths.py', '    if _is_mount_point(place):\n', '    if False:\n', ('base',)),
    Fault('settings: the argument loses to the setting', '_base/settings.py', 'for choice in (progress, self.progress):', 'for choice in (self.progress, progress):', ('base',)),
    Fault('graph: libraries put back in the wrong order', '_io/build_graph.py', 'back = np.argsort(np.concatenate(members), kind="stable")', 'back = np.concatenate(members)', ('pp',)),
    Fault('graph: coincident spots of other libraries counted', '_io/build_graph.py', 'n_coincident = sum(part.n_coincident for part in parts)', 'n_coincident = edges_of(coordinates).n_coincident', ('pp',)),
    Fault('scale of a result forgotten', '_io/expression.py', 'else str(record.get("scale", "counts"))', 'else "counts"', ('io', 'metrics')),
    Fault('expression: genes in the order of var', '_io/expression.py', 'positions = names.get_indexer(pd.Index(wanted))', 'positions = np.sort(names.get_indexer(pd.Index(wanted)))', ('io',)),
    Fault('images: a tile of even size off by one', '_io/images.py', 'size - 1) / 2', 'size) / 2', ('io',)),
    Fault('genes in the order asked for', '_io/read.py', 'positions = np.sort(adata.var_names.get_indexer(names))', 'positions = adata.var_names.get_indexer(names)', ('io', 'tl')),
    Fault('negative counts accepted', '_io/read.py', 'if values.min() < 0:', 'if values.min() < -1:', ('io', 'tl')),
    Fault('edges between libraries accepted', '_io/read.py', '    if crossing:\n', '    if crossing > 2:\n', ('io', 'tl')),
    Fault('rows: a share writes all blocks', '_io/rows.py', 'for start in range(rank * height, store.n_rows, world * height):', 'for start in range(0, store.n_rows, height):', ('io',)),
    Fault('rows: blocks not sorted before they are cut', '_io/rows.py', '            rows, values = rows[order], values[order]\n', '            rows = rows[order]\n', ('io',)),
    Fault('rows: too small a number for float16 becomes infinite', '_io/rows.py', 'return np.clip(values, -largest, largest)', 'return np.clip(values, None, largest)', ('io',)),
    Fault('rows: only part of what the system wrote', '_io/rows.py', 'data, offset = data[n_written:], offset + n_written', 'data = data[len(data):]', ('io',)),
    Fault('rows on disk in sorted order', '_io/sink.py', 'at = self.section.order[rows.cpu().numpy()]', 'at = rows.cpu().numpy()', ('tl',)),
    Fault('arrays that were not asked for are kept', '_io/sink.py', 'ARRAYS[1:] if name not in arrays}', 'ARRAYS[1:] if False}', ('tl',)),
    Fault('an earlier result is left on disk', '_io/sink.py', 'remove=owned_places(section.table, places.key)', 'remove=()', ('tl',)),
    Fault('latent variables of half precision', '_io/sink.py', '"float32" if name == "latent" else dtype', 'dtype', ('tl',)),
    Fault('the scale is lost on disk', '_io/sink.py', 'provenance, self._scale, history)', 'provenance, "", history)', ('tl',)),
    Fault('out changes the section, too', '_io/sink.py', 'copy=self._copy or self._out is not None', 'copy=self._copy', ('tl',)),
    Fault('sorted counts: total over modelled genes', '_io/sorted.py', 'total[rows] = np.asarray(block.sum(', 'total[rows] = np.asarray(_tidy(block, positions).sum(', ('io', 'tl')),
    Fault('sorted: repeated entries overflow', '_io/sorted.py', '    tidy = block.astype(np.float32)\n    tidy.sum_duplicates()\n', '    tidy = block.copy()\n    tidy.sum_duplicates()\n    tidy = tidy.astype(np.float32)\n', ('io',)),
    Fault('sorted: the record is not removed first', '_io/sorted.py', '    (folder / _RECORD).unlink(missing_ok=True)\n    n_rows', '    n_rows', ('io',)),
    Fault('sorted: what is left after an interrupt', '_io/sorted.py', '        for path in n_bytes:\n            path.unlink(missing_ok=True)\n        raise', '        raise', ('io',)),
    Fault('block cut inside a row', '_io/source.py', 'indptr[start : stop + 1] - begin', 'indptr[start : stop + 1] - begin + (start > 0)', ('io',)),
    Fault('columns out of range accepted', '_io/source.py', '<= indices.max() < n_columns', '<= indices.max() <= n_columns', ('io',)),
    Fault('source: a chunk of dask is cut', '_io/source.py', 'edges[edges <= max(start + entries // n_columns, edges[edges > start][0])][-1]', 'max(start + entries // n_columns, start + 1)', ('io',)),
    Fault('source: one row too many in a block', '_io/source.py', 'matrix.indptr[start] + entries, side="right") - 1', 'matrix.indptr[start] + entries, side="right")', ('io',)),
    Fault('source: raw is not copied', '_io/source.py', '            if "raw" in elements:\n', '            if "raw" in elements and False:\n', ('io',)),
    Fault('source: lost chunks are zeros', '_io/source.py', '    if matrix.incomplete:\n', '    if False:\n', ('io',)),
    Fault('source: truncated chunks are read', '_io/source.py', '        if len(header) < 16 or', '        if False and', ('io',)),
    Fault('genes swapped in what is written', '_io/write.py', 'return slice(None) if self.positions is None else np.argsort(self.positions)', 'return slice(None)', ('tl', 'get')),
    Fault('stale keys left', '_io/write.py', 'stale = [place for place in owned_places(adata, places.key) if place not in fields]', 'stale: list[str] = []', ('tl', 'get')),
    Fault('half of a result left after a failure', '_io/write.py', '        for place, value in before.items():\n            _put(adata, place, value)\n', '', ('tl',)),
    Fault('what stdenoise did not write is overwritten', '_io/write.py', '    if taken:\n', '    if False:\n', ('tl',)),
    Fault('dtype ignored', '_io/write.py', 'part, clipped = narrowed(part, dtype)', 'part, clipped = narrowed(part, "float32")', ('tl',)),
    Fault('which genes were modelled: the others', '_io/write.py', 'modelled[self.positions] = True', 'modelled[np.arange(len(self.positions))] = True', ('tl',)),
    Fault('the record is not among what was written', '_io/write.py', '"written": [*fields, record]', '"written": list(fields)', ('tl',)),
    Fault('columns of a choice named as they were asked for', '_io/write.py', 'self.var_names[np.sort(self.positions)]', 'self.var_names[self.positions[::-1]]', ('tl',)),
    Fault('layers that were not opened are overwritten', '_io/write.py', '    there = {f"layers/{name}" for name in layers or ()}', '    there: set[str] = set()', ('tl',)),
    Fault('denoised: shares the record', '_io/write.py', 'uns={key: {**deepcopy(dict(provenance)), "place": "X"}}', 'uns={key: {**provenance, "place": "X"}}', ('get',)),
    Fault('benchmark: the budget counts what runs only', 'benchmark/_pool.py', 'used + estimate(job) <= budget', 'used <= budget', ('benchmark',)),
    Fault('benchmark: workers outlive an error', 'benchmark/_pool.py', '            executor.shutdown(kill_workers=True)\n', '            pass\n', ('benchmark',)),
    Fault('benchmark: a worker outlives its parent', 'benchmark/_pool.py', '    os._exit(1)\n', '    pass\n', ('benchmark',)),
    Fault('benchmark: undefined scores rank first', 'benchmark/_tables.py', 'na_option="bottom"', 'na_option="top"', ('benchmark',)),
    Fault('benchmark: an equal score beats the baseline', 'benchmark/_tables.py', 'if not own * direction > rivals[best]:', 'if own * direction < rivals[best]:', ('benchmark',)),
    Fault('benchmark: standard deviation of the population', 'benchmark/_tables.py', 'there.std(ddof=1)', 'there.std()', ('benchmark',)),
    Fault('benchmark: the seed is no part of the hash', 'benchmark/_units.py', '                self.method.settings,\n                self.seed,\n', '                self.method.settings,\n', ('benchmark',)),
    Fault('benchmark: a renamed label forgets its results', 'benchmark/_units.py', '                self.dataset.hash,\n                self.method.name,', '                self.dataset.hash,\n                self.method.label,', ('benchmark',)),
    Fault('benchmark: a failing metric takes the others along', 'benchmark/_work.py', '            errors[metric["label"]] = describe(error)', '            raise', ('benchmark',)),
    Fault('dropout: additive edges are absolute', 'datasets/_dropout.py', 'edge = dropout.edge + (dropout.overall if edge_mode == "additive" else 0)', 'edge = dropout.edge', ('datasets',)),
    Fault('kinetics: rates of the first cells for every block', 'datasets/_kinetics.py', 'rng.poisson(s[rows] * rng.beta(k_on[rows], k_off[rows]))', 'rng.poisson(s[rows] * rng.beta(k_off[rows], k_on[rows]))', ('datasets',)),
    Fault('load: sections share files in the cache', 'datasets/_load.py', 'fname=f"{entry.section}_{url.rsplit(\'/\', 1)[-1]}"', "fname=url.rsplit('/', 1)[-1]", ('datasets',)),
    Fault('layout: purity and its complement swapped', 'datasets/_patterns.py', 'round((1 - pattern.purity) * n_cells)', 'round(pattern.purity * n_cells)', ('datasets',)),
    Fault('readers: row and column of the image swapped', 'datasets/_readers.py', 'here[["pixel_col", "pixel_row"]]', 'here[["pixel_row", "pixel_col"]]', ('datasets',)),
    Fault('sequencing: depth of the first cells for every block', 'datasets/_sequencing.py', 'observed[entries] = rng.binomial(fragments, _sequenced_share(fragments, cell, depth[cells]))', 'observed[entries] = rng.binomial(fragments, _sequenced_share(fragments, cell, depth[: cells.stop - cells.start]))', ('datasets',)),
    Fault('simulation: tissues share their truth', 'datasets/_simulate.py', '"true_counts": tissue.true.copy(),', '"true_counts": tissue.true,', ('datasets',)),
    Fault("simulation: dropout of the first setting's seed", 'datasets/_simulate.py', 'seeds = _entropy(tissue.pattern, seed=tissue.seed, setting=setting, replicate=tissue.replicate)', 'seeds = _entropy(tissue.pattern, seed=tissue.seed, setting=setting, replicate=0)', ('datasets',)),
    Fault('tissue: gamma with another dispersion', 'datasets/_tissue.py', 'rng.gamma(5.0, 1 / 5.0, size=mean.shape)', 'rng.gamma(2.0, 1 / 2.0, size=mean.shape)', ('datasets',)),
    Fault('pyg: receivers and senders swapped', 'get/_pyg.py', 'torch.stack([graph.col.long(), graph.row.long()])', 'torch.stack([graph.row.long(), graph.col.long()])', ('get',)),
    Fault('pyg: another spatial key ignored', 'get/_pyg.py', 'torch.tensor(read_coordinates(adata, spatial_key)', 'torch.tensor(read_coordinates(adata, "spatial")', ('get',)),
    Fault('a trained network ignores the depth it was trained at', 'methods/_network.py', 'spots.at_depth(model.median_total)', 'spots', ('methods',)),
    Fault('held-out deviance: odds forgotten', 'methods/_trial.py', 'odds = fraction / (1 - fraction)', 'odds = fraction', ('methods', 'metrics')),
    Fault('seed ignored: ALRA', 'methods/alra.py', 'generator = torch_generator(seed)', 'generator = torch_generator(0)', ('methods',)),
    Fault('ALRA: not rescaled', 'methods/alra.py', 'scale = torch.where(matched, deviation_observed / deviation, 1.0)', 'scale = torch.where(matched, 1.0, 1.0)', ('methods', 'reference')),
    Fault('ALRA: latent not scaled', 'methods/alra.py', 'latent=scores.float(),', 'latent=(scores / scores.norm(dim=0)).float(),', ('methods',)),
    Fault('ALRA: quantile off by one order statistic', 'methods/alra.py', 'position = q * (values.shape[1] - 1)', 'position = q * values.shape[1] * (1 - 1e-9)', ('methods',)),
    Fault('ALRA: deviation divided by n', 'methods/alra.py', '(squares / (count - 1)).sqrt()', '(squares / count).sqrt()', ('methods',)),
    Fault('ALRA: only_negative ignored', 'methods/alra.py', 'limit.clamp(max=0).abs() if self.config.only_negative else limit.abs()', 'limit.abs()', ('methods',)),
    Fault('ALRA: empty spots take part', 'methods/alra.py', 'observed = select_rows(lognorm, kept)', 'kept = torch.arange(n_spots, device=kept.device); observed = lognorm', ('methods',)),
    Fault('ALRA: rank of the gap, not after it', 'methods/alra.py', 'rank = int(above[-1]) + 1 if len(above) else 1', 'rank = max(int(above[-1]), 1) if len(above) else 1', ('methods',)),
    Fault('ALRA: observed zeros not put back', 'methods/alra.py', 'return torch.where(completed == 0, select_rows(lognorm, rows).to_dense().double(), completed)', 'return completed', ('methods',)),
    Fault('neighbor mean: depth not pooled', 'methods/baselines.py', 'depth[: patch.n_core, None] / total, 0.0', 'depth[: patch.n_core, None], 0.0', ('methods',)),
    Fault('Poisson factorisation: order of the transpose', 'methods/baselines.py', '(y / at_counts())[order]', '(y / at_counts())', ('methods',)),
    Fault('DUSTED: decoder attends to itself', 'methods/dusted/module.py', 'latent = self.bottleneck(graph.within(2), F.elu(aggregate(outer, attention, projected)))', 'latent = self.bottleneck(graph.within(2), F.elu(projected[: graph.within(2).shape[1]]))', ('methods/dusted',)),
    Fault('kNN-smoothing: not scaled to the total of the spot', 'methods/knn_smoothing.py', 'if config.output == "mean":', 'if False:', ('methods',)),
    Fault('kNN-smoothing: pools what was pooled', 'methods/knn_smoothing.py', 'pooled = pool(counts, near)', 'pooled = pool(pooled, near)', ('methods',)),
    Fault('kNN-smoothing: one round too few', 'methods/knn_smoothing.py', 'n_rounds = (k - 1).bit_length()', 'n_rounds = k.bit_length() - 1', ('methods',)),
    Fault('kNN-smoothing: dither over the deviation', 'methods/knn_smoothing.py', 'dither * (scores.amax(0) - scores.amin(0)) * noise', 'dither * scores.std(0) * noise', ('methods',)),
    Fault('MAGIC: roots not squared', 'methods/magic.py', 'mean = mean.square_().log1p_()', 'mean = mean.log1p_()', ('methods',)),
    Fault('MAGIC: knn_max counted from twice knn', 'methods/magic.py', 'knn_max = 3 * config.knn if', 'knn_max = 2 * config.knn if', ('methods',)),
    Fault('MAGIC: one automatic step too few', 'methods/magic.py', 'return len(disparity) + 1, disparity', 'return max(len(disparity), 1), disparity', ('methods',)),
    Fault('MAGIC: Procrustes without centring', 'methods/magic.py', 'one, other = one - one.mean(0), other - other.mean(0)', 'other = other - 0', ('methods',)),
    Fault('MAGIC: mean of the components forgotten', 'methods/magic.py', 'torch.addmm(pca.mean.float(), diffused', 'torch.addmm(0 * pca.mean.float(), diffused', ('methods',)),
    Fault('MAGIC: approximate solver ignored', 'methods/magic.py', 'approximate = pca is not None and config.solver == "approximate"', 'approximate = False', ('methods',)),
    Fault('MAGIC: knn_max below knn accepted', 'methods/magic.py', 'self.knn_max < self.knn:', 'self.knn_max < 1:', ('methods',)),
    Fault('SME: radius reached', 'methods/sme.py', 'keep = (lengths < limit) & spots', 'keep = (lengths <= limit) & spots', ('methods',)),
    Fault('SME: empty spots averaged', 'methods/sme.py', '(lengths < limit) & spots.nonempty[whole.col.long()]', 'lengths < limit', ('methods',)),
    Fault('SME: coincident spots are places of their own', 'methods/sme.py', 'coordinates], dim=1).unique(dim=0)', 'coordinates], dim=1)', ('methods',)),
    Fault('SME: image not centred', 'methods/sme.py', 'return features - features.mean(0)', 'return features', ('methods',)),
    Fault('SME: correlation not centred', 'methods/sme.py', 'expression.double() - expression.double().mean(1, keepdim=True)', 'expression.double()', ('methods',)),
    Fault('SME: a zero average is one', 'methods/sme.py', 'torch.where(mean == 0, block, (block + mean) / 2)', '(block + mean) / 2', ('methods',)),
    Fault('SME: default number of neighbours', 'methods/sme.py', '_N_KEPT, _N_KEPT_PHYSICAL = 3, 6', '_N_KEPT, _N_KEPT_PHYSICAL = 4, 6', ('methods',)),
    Fault('SME: far spots before negative ones forgotten', 'methods/sme.py', 'return ranks + torch.where(weights < 0, n_far[row], 0) < k', 'return ranks < k', ('methods',)),
    Fault('SME: median distance over all libraries', 'methods/sme.py', 'median.reindex(codes.cpu().numpy()).fillna(1.0)', '(median * 0 + median.median()).reindex(codes.cpu().numpy()).fillna(1.0)', ('methods',)),
    Fault('Smoother: levels not added again', 'methods/smoother.py', '            values += means[0][means[1]]\n        # Only', '            pass\n        # Only', ('methods',)),
    Fault('Sprod: radius of the larger range', 'methods/sprod/learn.py', 'float(ranges.min())', 'float(ranges.max())', ('methods/sprod',)),
    Fault('Sprod: radius does not shrink', 'methods/sprod/learn.py', 'shrink = min(1.0, (_MOST_SPOTS / len(coordinates)) ** 0.5)', 'shrink = 1.0', ('methods/sprod',)),
    Fault('Sprod: half of the gradient', 'methods/sprod/learn.py', '2 * config.capacity * resistance).cpu()', 'config.capacity * resistance).cpu()', ('methods/sprod',)),
    Fault('Sprod: perplexity not lowered', 'methods/sprod/learn.py', 'perplexity = min(config.perplexity, (len(features) - 1) / 3)', 'perplexity = min(config.perplexity, len(features) - 1)', ('methods/sprod',)),
    Fault('Sprod: the shorter axis is cut', 'methods/sprod/resistance.py', 'coordinates.amin(0)).argmax()', 'coordinates.amin(0)).argmin()', ('methods/sprod',)),
    Fault('STAGATE: one hop of halo too few', 'methods/stagate/method.py', '        return 2\n', '        return 1\n', ('methods',)),
    Fault('STAGATE: restore_best ignored', 'methods/stagate/method.py', 'restore_best=config.restore_best', 'restore_best=False', ('methods',)),
    Fault('STAGATE: loss over empty spots too', 'methods/stagate/module.py', 'scale=1.0 / (patch.n_scored * x.shape[1])', 'scale=1.0 / (patch.n_core * x.shape[1])', ('methods',)),
    Fault('STAGATE: gradient of the tied error', 'methods/stagate/module.py', 'd_hidden, d_weight = product @ weight, product.t() @ hidden', 'd_hidden, d_weight = product @ weight, 2 * product.t() @ hidden', ('methods',)),
    Fault('STAGATE: sums in single precision', 'methods/stagate/module.py', '.sum(dtype=torch.float64)', '.sum().double()', ('methods',)),
    Fault('permutations: ties count on one side', 'metrics/_autocorrelation.py', '(drawn <= observed + _TIE).sum(axis=0))', '(drawn < observed - _TIE).sum(axis=0))', ('metrics',)),
    Fault('autocorrelation: genes of the first block for every block', 'metrics/_autocorrelation.py', 'observed[left[block]] = statistic.of_centred(centred, spread).cpu().numpy()', 'observed[left[: len(spread)]] = statistic.of_centred(centred, spread).cpu().numpy()', ('metrics',)),
    Fault('clustering: scores before refinement', 'metrics/_clustering.py', 'found = mixture.labels if places is None or refine is None else', 'found = mixture.labels if True else', ('metrics',)),
    Fault('clustering: every run with the first seed', 'metrics/_clustering.py', 'backend=backend, seed=run)', 'backend=backend, seed=seed)', ('metrics',)),
    Fault('correlation: protein not aligned', 'metrics/_gene_protein.py', '_numbers(series.reindex(adata.obs_names), name)', '_numbers(series.iloc[: adata.n_obs], name)', ('metrics',)),
    Fault('intervals: one tail twice as long', 'metrics/_gene_protein.py', 'tail = 50 * (1 - confidence)', 'tail = 100 * (1 - confidence)', ('metrics',)),
    Fault('intensity: scale factor ignored', 'metrics/_intensity.py', 'coordinates * on_image.scale_factor, on_image.radius)', 'coordinates, on_image.radius)', ('metrics',)),
    Fault('masked recovery: a second logarithm', 'metrics/_masked_recovery.py', 'normal = values if result.scale == "log1p" else lognorm(values)', 'normal = lognorm(values)', ('metrics',)),
    Fault("masked recovery: a spot is its own neighbour's mean", 'metrics/_masked_recovery.py', 'degree = np.maximum(np.diff(adjacency.indptr), 1)', 'degree = np.diff(adjacency.indptr) + 1', ('metrics',)),
    Fault('null test: held-out molecules not permuted with the spots', 'metrics/_null_test.py', '(rest.with_counts(rest.counts[order]), held[order])', '(rest.with_counts(rest.counts[order]), held)', ('metrics',)),
    Fault('reconstruction: genes chosen before normalisation', 'metrics/_reconstruction.py', 'predicted = read_expression(adata, layer)\n    target', 'predicted = read_expression(adata, layer, genes=genes); genes = None\n    target', ('metrics',)),
    Fault('reconstruction: truth matched in the order of its own spots', 'metrics/_reconstruction.py', 'values = truth.to_numpy()[rows][:,', 'values = truth.to_numpy()[np.sort(rows)][:,', ('metrics',)),
    Fault('smoothing: a directed edge counts twice', 'metrics/_smoothing.py', 'sparse.triu((graph != 0) + (graph != 0).T, k=1)', 'sparse.triu((graph != 0) + (graph != 0).T, k=0)', ('metrics',)),
    Fault('attention over senders', 'nn/attention.py', 'score = torch.sigmoid(source[col] + target[row])', 'score = torch.sigmoid(source[row] + target[col])', ('nn', 'methods/dusted')),
    Fault('attention: gradient of senders and receivers swapped', 'nn/attention.py', 'return None, graph.col_sum(d_logit), graph.row_sum(d_logit)', 'return None, graph.row_sum(d_logit), graph.col_sum(d_logit)', ('nn',)),
    Fault('attention: gradient of the softmax without its mean', 'nn/attention.py', 'd_score = weight * (grad - graph.row_sum(weight * grad)[graph.row])', 'd_score = weight * grad', ('nn',)),
    Fault('gate on the mean only', 'nn/channel.py', 'pooled = torch.stack([mean, maximum])', 'pooled = torch.stack([mean, mean])', ('nn', 'methods/dusted')),
    Fault('gate: drawn from the global generator', 'nn/channel.py', 'uniform_(-bound, bound, generator=generator)', 'uniform_(-bound, bound)', ('nn',)),
    Fault('likelihood: size factor lost', 'nn/counts.py', 'mu, theta = activate(logits[:2], size_factors)', 'mu, theta = activate(logits[:2], torch.ones_like(size_factors))', ('nn',)),
    Fault('likelihood: factor of the gradient forgotten', 'nn/counts.py', 'factor = grads[0] * ctx.scale', 'factor = grads[0]', ('nn',)),
    Fault('zero inflation: share of the other zeros', 'nn/counts.py', 'share = (keep * nb_zero).div_(chance)', 'share = (drop * nb_zero).div_(chance)', ('nn',)),
    Fault('likelihood: single precision at the counts', 'nn/counts.py', '(x.view(-1)[at].double() for x in (mu, theta, zero_term))', '(x.view(-1)[at] for x in (mu, theta, zero_term))', ('nn',)),
    Fault('likelihood: rows of a block off by its start', 'nn/counts.py', 'loss += count_loss_(slopes, block, size_factors[rows])', 'loss += count_loss_(slopes, block, size_factors[: block.stop - block.start])', ('nn',)),
    Fault('compare: normalised over the drawn genes', 'pl/_compare.py', 'chosen = (lognorm(matrix) if normalize else matrix)[:, positions]', 'chosen = matrix[:, positions]; chosen = lognorm(chosen) if normalize else chosen', ('pl',)),
    Fault('compare: y upwards', 'pl/_compare.py', '    axes[0, 0].invert_yaxis()\n', '', ('pl',)),
    Fault('history: epochs from 0', 'pl/_history.py', 'ax.plot(np.arange(1, len(values) + 1), values,', 'ax.plot(np.arange(len(values)), values,', ('pl',)),
    Fault('choice of genes: threads of torch changed', 'pp/_highly_variable.py', 'with keeping_threads():', 'if keeping_threads:', ('pp',)),
    Fault('image features: quantiles of another order', 'pp/_image_features.py', '_QUANTILES).reshape(len(centres), -1)', '_QUANTILES).transpose(0, 2, 1).reshape(len(centres), -1)', ('pp',)),
    Fault('image features: rows of libraries in the order of libraries', 'pp/_image_features.py', '        features[spots] = part', '        features[: len(spots)] = part', ('pp',)),
    Fault('graph: diagonal kept', 'spatial/graph.py', '& (pattern.row != pattern.col)', '', ('spatial',)),
    Fault('graph: receivers and senders swapped', 'spatial/graph.py', 'order = np.lexsort((col, row))', 'row, col = col, row; order = np.lexsort((col, row))', ('spatial', 'nn')),
    Fault('graph: gradient of weights by the wrong graph', 'spatial/graph.py', 'd_values = ctx.graph.transposed_matrix(weights) @ grad', 'd_values = ctx.graph.matrix(weights) @ grad', ('spatial', 'nn')),
    Fault('graph: permuted the wrong way', 'spatial/graph.py', 'place[order] = np.arange(len(order))', 'place = np.asarray(order)', ('spatial',)),
    Fault('select_rows: off by one in the row pointers', 'spatial/graph.py', 'shift = torch.repeat_interleave(crow[rows] - taken[:-1], counts)', 'shift = torch.repeat_interleave(crow[rows] - taken[1:] + counts[:1], counts)', ('spatial', 'train')),
    Fault('graph: within: one ring too few', 'spatial/graph.py', 'self.rings[n_hops + 1][0])', 'self.rings[n_hops][0])', ('spatial',)),
    Fault('grid: spots may share a cell', 'spatial/lattice.py', 'if taken.sum() < n_spots or n_pairs < n_spots:', 'if n_pairs < n_spots:', ('spatial', 'metrics')),
    Fault('neighbors: a spot is its own neighbour', 'spatial/neighbors.py', '            least[itself] = torch.inf', '            pass', ('spatial',)),
    Fault('neighbors: libraries ignored', 'spatial/neighbors.py', 'np.flatnonzero(np.diff(codes[order])) + 1', 'np.flatnonzero(np.diff(codes[order])) * 0', ('spatial', 'methods')),
    Fault('log-normalisation to another total', 'spatial/normalize.py', 'TARGET_SUM = 1e4', 'TARGET_SUM = 1e3', ('io', 'metrics', 'methods')),
    Fault('radius: edges longer than the radius', 'spatial/radius.py', 'near = lengths <= radius', 'near = lengths <= radius * 1.01', ('spatial', 'pp')),
    Fault('radius: of the nearest edge', 'spatial/radius.py', 'float(lengths.max())', 'float(lengths.min())', ('spatial',)),
    Fault('blocks put together at the wrong rows', 'spatial/results.py', 'target[rows[where].to(target.device)] = values', 'target[: len(values)] = values', ('tl', 'train')),
    Fault('expected count: dropout forgotten', 'spatial/results.py', 'return self.mean[:] * (1 - self.dropout)', 'return self.mean[:]', ('methods', 'metrics')),
    Fault('size factors over the chosen genes', 'spatial/spots.py', 'total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()\n        if positions is not None:\n            counts = counts[:, positions]', 'if positions is not None:\n            counts = counts[:, positions]\n        total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()\n        if positions is not None:', ('tl', 'methods')),
    Fault('median over empty spots too', 'spatial/spots.py', 'median = float(np.median(total[nonempty]))', 'median = float(np.median(total))', ('tl', 'methods')),
    Fault('empty spot gets a size factor of zero', 'spatial/spots.py', 'size_factors = np.where(nonempty, total / median, 1.0)', 'size_factors = total / median', ('tl', 'methods')),
    Fault('stored zeros kept', 'spatial/spots.py', '            counts.eliminate_zeros()\n', '', ('tl', 'methods')),
    Fault('tiles: halo dropped one ring', 'spatial/tiles.py', 'for _ in range(self.n_hops):\n', 'for _ in range(self.n_hops - 1):\n', ('spatial', 'train')),
    Fault('tiles: ring not numbered', 'spatial/tiles.py', 'n_tile += len(ring)\n            rings.append(ring)', 'rings.append(ring)', ('spatial',)),
    Fault('partition: libraries ignored', 'spatial/tiles.py', 'if libraries is not None:\n        order', 'if False:\n        order', ('spatial', 'train')),
    Fault('partition: always through the middle', 'spatial/tiles.py', 'left = n_parts // 2 if rng is None else int(rng.integers(least, n_parts - least, endpoint=True))', 'left = n_parts // 2', ('spatial',)),
    Fault('tiles: numbers of the last tile left', 'spatial/tiles.py', '        self._number[spots] = -1\n', '', ('spatial',)),
    Fault("Moran's I: factor", 'stats/autocorrelation.py', 'self.factor = n_spots / weights.s0', 'self.factor = (n_spots - 1) / weights.s0', ('stats', 'metrics')),
    Fault("Moran's I: variance", 'stats/autocorrelation.py', 'return (n**2 * s1 - n * s2 + 3 * s0**2)', 'return (n**2 * s1 + n * s2 + 3 * s0**2)', ('stats', 'metrics')),
    Fault("Geary's C: one spot too many", 'stats/autocorrelation.py', 'self.factor = (n_spots - 1) / (2 * weights.s0)', 'self.factor = n_spots / (2 * weights.s0)', ('stats', 'metrics')),
    Fault('autocorrelation: loops of the graph kept', 'stats/autocorrelation.py', 'keep = (pattern.data != 0) & (row != col)', 'keep = pattern.data != 0', ('stats', 'metrics')),
    Fault('autocorrelation: margins of the first block for every block', 'stats/autocorrelation.py', 'linear += sums[:, start:stop] @ dense', 'linear += sums[:, : stop - start] @ dense', ('stats',)),
    Fault('correlation: ties get their highest rank', 'stats/correlation.py', '(size.cumsum(1) - (size - 1) / 2)[:, group]', 'size.cumsum(1)[:, group]', ('stats', 'metrics')),
    Fault('thinning keeps what is held out', 'stats/deviance.py', 'for values in (counts.data - held_out, held_out):', 'for values in (counts.data, held_out):', ('stats', 'metrics')),
    Fault('thinning: stored zeros kept', 'stats/deviance.py', '        part.eliminate_zeros()\n        parts.append(part)', '        parts.append(part)', ('stats',)),
    Fault('deviance: floor without the depth of the spot', 'stats/deviance.py', 'floor = FLOOR * torch.tensor(depth[rows], dtype=torch.float64, device=device)[:, None] * profile_t', 'floor = FLOOR * torch.ones_like(expected[rows], dtype=torch.float64) * profile_t', ('stats', 'metrics')),
    Fault('dispersion: mean not subtracted from the excess', 'stats/deviance.py', 'excess = y2 - 2 * ym + squared - depth.sum() * profile', 'excess = y2 - 2 * ym + squared', ('stats',)),
    Fault('diffusion: bandwidth of the nearest but one', 'stats/diffusion.py', 'bandwidth = distance[:, :knn][:, -1:].clamp(', 'bandwidth = distance[:, : knn + 1][:, -1:].clamp(', ('stats', 'reference')),
    Fault('discs: x and y swapped in the limits of the image', 'stats/discs.py', '.clip(-1, [width - 1, height - 1])', '.clip(-1, [height - 1, width - 1])', ('stats', 'pp', 'metrics')),
    Fault('labels: homogeneity and completeness swapped', 'stats/labels.py', 'homogeneity, completeness, nmi = metrics.homogeneity_completeness_v_measure(truth, predicted)', 'homogeneity, completeness, nmi = metrics.homogeneity_completeness_v_measure(predicted, truth)', ('stats', 'metrics')),
    Fault('labels: of tied labels the farthest wins', 'stats/labels.py', 'nearest = (count == count.max(axis=1, keepdims=True)).argmax(axis=1)', 'nearest = n_neighbors - 1 - (count == count.max(axis=1, keepdims=True))[:, ::-1].argmax(axis=1)', ('stats',)),
    Fault('singular vectors: signs left to chance', 'stats/lowrank.py', 'sign = torch.where(largest < 0, -1.0, 1.0)', 'sign = torch.where(largest < 0, 1.0, 1.0)', ('stats',)),
    Fault('masked entries drawn with replacement', 'stats/masking.py', 'replace=False', 'replace=True', ('stats', 'metrics')),
    Fault('mixture: parameters of the BIC', 'stats/mixture.py', 'n_parameters = n_clusters - 1 + n_clusters * d + d * (d + 1) // 2', 'n_parameters = n_clusters + n_clusters * d + d * (d + 1) // 2', ('stats',)),
    Fault('mixture: clusters not numbered by size', 'stats/mixture.py', '    return best.by_size()', '    return best', ('stats',)),
    Fault('mixture: every start from one stream', 'stats/mixture.py', 'np.random.default_rng(sequence)', 'np.random.default_rng(seed)', ('stats',)),
    Fault('null: spots permuted across libraries', 'stats/nulls.py', 'order[members] = rng.permutation(members)', 'order[members] = rng.permutation(len(libraries))[: len(members)]', ('stats', 'metrics')),
    Fault('null: redrawn counts without the depth of the spots', 'stats/nulls.py', 'p=per_spot / per_spot.sum()', 'p=None', ('stats', 'metrics')),
    Fault('ssim: window not normalised', 'stats/reconstruction.py', 'return _blur(values, lattice) / weight', 'return _blur(values, lattice)', ('stats', 'metrics')),
    Fault('median of pairs: the lower of the middle two', 'stats/smoothing.py', 'values[len(values) // 2]) / 2', 'values[(len(values) - 1) // 2]) / 2', ('stats', 'metrics')),
    Fault('conjugate gradients: all columns against the first tolerance', 'stats/solve.py', 'goal = tol * size\n', 'goal = tol * size[:, :1].expand(size.shape)\n', ('stats',)),
    Fault('device is not recorded', 'tl/_denoise.py', '"device": str(run.device),', '"device": "auto",', ('tl',)),
    Fault('key_added is not checked', 'tl/_denoise.py', '    check_name("key_added", key)\n', '', ('tl',)),
    Fault('an array that is not written is asked for in vain', 'tl/_denoise.py', '        if name not in denoiser.writes:', '        if False:', ('tl',)),
    Fault('copy and out go together', 'tl/_denoise.py', '        if copy:\n            raise', '        if False:\n            raise', ('tl',)),
    Fault('a file from memory is not rounded', 'tl/_denoise.py', '("float32" if target is None else FILE_DTYPE)', '"float32"', ('tl', 'test_cli.py')),
    Fault('threads are ignored', 'tl/_open_run.py', '            torch.set_num_threads(compute.threads)', '            pass', ('tl',)),
    Fault('latent variables are counted among the results', 'tl/_open_run.py', 'len({"mean", *arrays} - {"latent"})', 'len({"mean", *arrays})', ('tl',)),
    Fault('scratch of a killed run is in the way', 'tl/_open_run.py', '        if folder.exists():\n            # What a killed run has left.\n            remove_scratch(folder)\n', '', ('tl',)),
    Fault('scratch is left behind', 'tl/_open_run.py', '    finally:\n        if run.is_first:\n            remove_scratch(folder)', '    finally:\n        pass', ('tl',)),
    Fault('checkpoint of another run accepted', 'train/checkpoint.py', 'if self.identity.get(name) != state["identity"].get(name)]', 'if False]', ('train',)),
    Fault('checkpoint: the graph is no part of it', 'methods/_network.py', '        **graphs,\n', '', ('tl',)),
    Fault('matrix: columns out of range', '_io/matrix.py', '<= indices.max() < n_columns', '<= indices.max()', ('io',)),
    Fault('matrix: narrow integers stay narrow', '_io/matrix.py', 'data = data.astype(_wide(data.dtype))', 'pass', ('io',)),
    Fault('a graph of this run is forgotten', '_io/source.py', 'if value is not self.opened.get(place)}', 'if place not in self.opened}', ('tl',)),
    Fault('NaN is written', '_io/write.py', '    if bad:\n', '    if False:\n', ('tl',)),
    Fault('conjugate gradients: small equations do not count', 'stats/solve.py', 'torch.stack([residual.norm(dim=0), preconditioned.norm(dim=0)])', 'torch.stack([residual.norm(dim=0), residual.norm(dim=0)])', ('methods', 'stats')),
    Fault('checkpoint: a full disk ends the training', 'train/checkpoint.py', '            logger.warning("%s; the training goes on", error)\n', '            raise\n', ('train',)),
    Fault('checkpoint: signal after the last step lost', 'train/checkpoint.py', '            signal.signal(number, handler)\n            pending, self._signal = self._signal, None', '            signal.signal(number, handler)\n            pending, self._signal = None, None', ('train',)),
    Fault('checkpoint: a second signal waits too', 'train/checkpoint.py', 'elif time.monotonic() - told_at >= echo:', 'elif time.monotonic() - told_at >= echo + 5:', ('train',)),
    Fault('held-out molecules are seen', 'train/held_out.py', '        if not touched.any():', '        if True:', ('train', 'methods/dusted')),
    Fault('held-out: depth not lowered', 'train/held_out.py', 'size_factors * (1 - self.fraction)', 'size_factors', ('train', 'methods/dusted')),
    Fault('training: best weights not restored', 'train/loop.py', '        training.restore_best()\n    return course.outcome', '        pass\n    return course.outcome', ('train',)),
    Fault('training: gradient not clipped', 'train/loop.py', 'nn.utils.clip_grad_norm_(self.parameters, clip).item()', 'nn.utils.clip_grad_norm_(self.parameters, 1e9).item()', ('train',)),
    Fault('resume forgets the optimiser', 'train/loop.py', '        self.stepper.load_state_dict(saved["optimizer"])\n', '', ('train',)),
    Fault('resume forgets the generator', 'train/loop.py', '            self.generator.set_state(self._drawn_from)\n', '            pass\n', ('train',)),
    Fault('training: best weights lost when resumed', 'train/loop.py', 'self._good, self.best, self._drawn_from = saved["good"], saved["best"], saved["drawn_from"]', 'self._good, self._drawn_from = saved["good"], saved["drawn_from"]', ('train',)),
    Fault('training: snapshot not copied', 'train/loop.py', 'return deepcopy(state) if copy else state', 'return state', ('train',)),
    Fault('training: buffers do not belong to the weights', 'train/loop.py', '[*self.parameters, *module.buffers()]', '[*self.parameters]', ('train',)),
    Fault('training: rate not halved', 'train/loop.py', 'self.state.lr_factor /= 2', 'self.state.lr_factor /= 1', ('train',)),
    Fault('training: every process writes', 'train/loop.py', 'checkpoint.save(state if self.run.is_first else None)', 'checkpoint.save(state)', ('train',)),
    Fault('training: last part begins from the last weights', 'train/loop.py', '                training.restore_best()\n                state.annealing', '                state.annealing', ('train',)),
    Fault('training: back to before the last part', 'train/loop.py', ' or state.epoch == state.annealing', '', ('train',)),
    Fault('empty spots scored', 'train/patches.py', 'scored=torch.from_numpy(np.flatnonzero(self._nonempty[core]))', 'scored=torch.from_numpy(np.arange(len(core)))', ('train', 'methods/dusted')),
    Fault('schedule: least number of epochs ignored', 'train/schedule.py', 'return self._anneal is None or self._state.epoch + 1 >= min(self._anneal.least, self._latest)', 'return True', ('train',)),
    Fault('schedule: any improvement counts', 'train/schedule.py', 'margin = _ANNEAL_MARGIN * loss if self._anneal else 0.0', 'margin = 0.0', ('train',)),
]
# fmt: on

REST = tuple(sorted(path.name for path in (ROOT / "tests").iterdir() if path.name[0] not in "_."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="faults whose name has one of these")
    parser.add_argument("--check", action="store_true", help="only look whether each piece of text stands once")
    parser.add_argument("--beside", action="store_true", help="only run the tests that lie beside")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    parser.add_argument("--pytest", default="", help="more arguments of pytest")
    args = parser.parse_args()
    chosen = [
        fault for fault in FAULTS if not args.words or any(word.lower() in fault.name.lower() for word in args.words)
    ]
    wrong = [fault.name for fault in chosen if (ROOT / "src/stdenoise" / fault.file).read_text().count(fault.old) != 1]
    if wrong:
        sys.exit(f"the text does not stand once: {wrong}")
    if args.check:
        print(f"{len(chosen)} faults can be seeded")
        return
    with ThreadPoolExecutor(args.jobs) as pool:
        found = list(pool.map(lambda fault: seed(fault, args), chosen))
    print(f"{sum(map(bool, found))} of {len(found)} faults were noticed")
    sys.exit(None if all(found) else 1)


def seed(fault: Fault, args: argparse.Namespace) -> bool:
    """Put a fault into a copy of the package, run the tests, and print the first that fails."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stdenoise-fault-") as folder:
        for name in ("src", "tests", "pyproject.toml", "README.md", "docs", "benchmarks", "noxfile.py"):
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__", "_build")
                )
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, Path(folder) / name)
        path = Path(folder) / "src/stdenoise" / fault.file
        path.write_text(path.read_text().replace(fault.old, fault.new))
        groups = (
            [fault.beside] if args.beside else [fault.beside, tuple(name for name in REST if name not in fault.beside)]
        )
        failed = ""
        for names in groups:
            # The house, types and pages are not what is asked; nor is the same test asked twice.
            paths = [f"tests/{name}" for name in names]
            skipped = [
                f"--ignore=tests/{name}"
                for name in ("test_house.py", *(fault.beside if names is not fault.beside else ()))
            ]
            failed = failed or first_failure(Path(folder), [*paths, *skipped, *args.pytest.split()])
    print(f"{fault.name:62} {failed or 'SURVIVED':90} {time.monotonic() - begun:5.0f} s", flush=True)
    return bool(failed)


def first_failure(folder: Path, arguments: list[str]) -> str:
    """Name of the first test that fails; empty if none does."""
    env = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode in (0, 5):
        return ""
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split(" - ")[0].split(" ", 1)[1] if lines else f"pytest ended with {done.returncode}"


if __name__ == "__main__":
    main()
