from ._compare import compare as compare
from ._history import history as history
