import os
import subprocess
import sys

import pytest

import stdenoise as st
from stdenoise._base.device import usable_cores

COMMAND = """
from click.testing import CliRunner
from stdenoise import __main__ as cli
done = CliRunner().invoke(cli.main, ["denoise", "in.h5ad", "out.h5ad", "--method", "gene_mean", "--n-top-genes", "10"])
assert done.exit_code == 0, done.output
"""
BENCHMARK = """
import stdenoise as st
from stdenoise._base.device import usable_cores
config = {
    "name": "threads",
    "seeds": [0],
    "datasets": [{"name": "one", "path": "in.h5ad", "truth": "true_mean", "n_top_genes": 10}],
    "methods": [{"name": "gene_mean"}],
    "metrics": [{"name": "reconstruction"}],
}
assert len(st.benchmark.run(config, folder="out", n_jobs=0))
"""


@pytest.mark.skipif(usable_cores() == 1, reason="one core: there is nothing to be reset to")
@pytest.mark.parametrize("code", [COMMAND, BENCHMARK], ids=["command line", "benchmark"])
def test_the_choice_of_genes_leaves_the_threads_of_torch(tmp_path, code):
    adata = st.datasets.tissue(n_spots=200, n_genes=30)
    adata.X = adata.X * 10
    adata.write_h5ad(tmp_path / "in.h5ad")
    script = f"import torch\nbefore = torch.get_num_threads()\n{code}\nprint(before, torch.get_num_threads())"
    # numba reads its own variable, and not that of OpenMP.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("NUMBA_NUM_THREADS", None)
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1"]
