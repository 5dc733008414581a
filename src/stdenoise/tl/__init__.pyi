from ._cluster import cluster as cluster
from ._cross_validate import cross_validate as cross_validate
from ._denoise import denoise as denoise
from ._train import train as train
