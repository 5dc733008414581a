"""Preprocessing: the spatial graph, and features of the image."""

from stdenoise.pp._image_features import image_features
from stdenoise.pp._spatial_graph import spatial_graph

__all__ = ["image_features", "spatial_graph"]
