from ._load import load as load
from ._load import registry as registry
from ._simulate import simulate as simulate
from ._simulate import simulated_benchmark as simulated_benchmark
from ._simulate import simulated_names as simulated_names
from ._tissue import tissue as tissue
