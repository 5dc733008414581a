"""What a run did, in lines: for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stdenoise._base.keys import GraphKeys
from stdenoise._base.memory import peak_gb

if TYPE_CHECKING:
    from anndata import AnnData


def summary(adata: AnnData, key: str, path: Path, seconds: float) -> list[str]:
    """Say what was written, the loss, time and memory."""
    record = adata.uns[key]
    loss = record["history"].get("loss")
    n_genes = adata.n_vars if isinstance(record["genes"], str) else len(record["genes"])
    lines = {
        "method": f"{record['method']}, seed {record['seed']}, {record['device']}",
        "data": f"{adata.n_obs} spots x {n_genes} genes, scale {record['scale']}",
        "graph": _graph_line(adata, record["graph_key"]),
        "written": ", ".join(record["written"]),
        "loss": f"{loss[0]:.4f} first, {loss[-1]:.4f} last, {len(loss)} epochs" if loss is not None else "",
        "training": _training_line(record.get("training", {})),
        "check": ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in record.get("check", {}).items()),
        "time": f"{seconds:.1f} s",
        "memory": f"{peak_gb():.2f} GB at most",
        "file": f"{path}, {_size_mb(path):.1f} MB",
    }
    return [f"{label:<9} {value}" for label, value in lines.items() if value]


def _training_line(ending: Mapping[str, Any]) -> str:
    """Why the training stopped, and what it gained on molecules that it had not seen."""
    parts = [str(ending["stopped"])] if "stopped" in ending else []
    if "annealing_from" in ending:
        parts.append(f"back to epoch {ending['best_epoch']} after {ending['annealing_from']}, then all molecules")
    if "held_out_explained" in ending:
        parts.append(f"{ending['held_out_explained']:.1%} of the gene means' held-out deviance explained")
    return "; ".join(parts)


def _size_mb(path: Path) -> float:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files) / 1e6


def _graph_line(adata: AnnData, graph_key: str) -> str:
    """Statistics of the graph, where we built it."""
    stats = adata.uns.get(GraphKeys(graph_key).uns, {}).get("stats")
    if stats is None:
        return ""
    return (
        f"{stats['mean_degree']:.2f} neighbours on average, {stats['n_isolated']} isolated and "
        f"{stats['n_coincident']} coincident spots, {stats['n_components']} components"
    )
