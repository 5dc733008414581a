from . import benchmark as benchmark
from . import datasets as datasets
from . import get as get
from . import methods as methods
from . import metrics as metrics
from . import pl as pl
from . import pp as pp
from . import tl as tl
from ._base.compute import Checkpoint as Checkpoint
from ._base.compute import Compute as Compute
from ._base.settings import settings as settings

__version__: str
