from ._denoised import denoised as denoised
from ._pyg import pyg as pyg
