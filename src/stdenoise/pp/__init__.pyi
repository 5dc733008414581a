from ._image_features import image_features as image_features
from ._spatial_graph import spatial_graph as spatial_graph
