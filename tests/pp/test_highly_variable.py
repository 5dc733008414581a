import os
import subprocess
import sys

import pytest

from stdenoise._base.device import usable_cores

# In a process of its own: numba starts its threads once.
SCRIPT = """
import torch
import stdenoise as st
from stdenoise.pp._highly_variable import mark_highly_variable
before = torch.get_num_threads()
adata = st.datasets.tissue(n_spots=200, n_genes=30)
adata.X = adata.X * 10
mark_highly_variable(adata, 10, None)
print(before, torch.get_num_threads(), adata.var["highly_variable"].sum())
"""


@pytest.mark.skipif(usable_cores() == 1, reason="one core: there is nothing to be reset to")
def test_the_choice_of_genes_leaves_the_threads_of_torch():
    # numba reads its own variable, and not that of OpenMP.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("NUMBA_NUM_THREADS", None)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1", "10"]
