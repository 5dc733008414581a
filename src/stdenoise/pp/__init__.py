"""Preprocessing: the spatial graph."""

from stdenoise.pp._spatial_graph import spatial_graph

__all__ = ["spatial_graph"]
