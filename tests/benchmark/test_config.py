import re
import tomllib

import pytest

from stdenoise import benchmark
from stdenoise.benchmark._config import read_config

TOML = """
name = "first table"
seeds = [0, 1]
[[datasets]]
name = "sim-*"
simulate = { patterns = ["P1", "P2"], settings = [1, 4], n_spots = 60, n_genes = 20 }
[[datasets]]
name = "round"
tissue = { n_spots = 50, n_genes = 20 }
graph = { radius = 150 }
[[methods]]
label = "DUSTED"
name = "dusted"
params = { preset = "simulated", n_epochs = 2 }
datasets = ["sim-*"]
[[methods]]
name = "neighbor_mean"
params = { n_hops = 2 }
[[metrics]]
name = "reconstruction"
args = { within = "in_edge_band" }
datasets = ["sim-*"]
[[metrics]]
name = "held_out"
methods = ["DUSTED*"]
[[metrics]]
name = "clustering"
datasets = ["round"]
"""


def test_what_a_file_says(tmp_path):
    (tmp_path / "first.toml").write_text(TOML)
    plan = read_config(tmp_path / "first.toml")
    assert plan.name == "first table"
    assert [d.name for d in plan.datasets] == ["sim-P1-1", "sim-P1-4", "sim-P2-1", "sim-P2-4", "round"]
    assert [d.group for d in plan.datasets] == ["sim-setting 1", "sim-setting 4"] * 2 + ["round"]
    assert [m.label for m in plan.methods] == ["DUSTED", "neighbor_mean(n_hops=2)"]
    assert {(d.labels, d.truth) for d in plan.datasets} == {("cell_type", "true_counts"), ("region", "true_mean")}
    units = [(u.dataset.name, u.method.label, u.seed, u.group) for u in plan.units()]
    assert len(units) == len(set(units)) == 2 * (4 + 4 + 4 + 1)
    assert ("round", "DUSTED", 0, "fit") not in units
    assert ("round", "neighbor_mean(n_hops=2)", 1, "fit") in units
    assert ("sim-P2-4", "DUSTED", 1, "held_out") in units
    # The equal mapping gives the same.
    assert [u.hash for u in read_config(tomllib.loads(TOML)).units()] == [u.hash for u in plan.units()]


def test_all_problems_are_reported_at_once(tmp_path, config):
    wrong = {
        "nmae": "x",
        "seeds": [0, 1.5, -1],
        "datasets": [
            {"name": "a", "tissue": {"n_spots": 40, "n_gene": 12}},
            {"name": "b", "path": "missing.h5ad"},
            {"name": "c", "load": {"name": "dlpfcc"}},
            {"name": "d-*", "simulate": {"patterns": ["P1", "P9"]}},
            {"name": "e"},
            {"name": "f", "tissue": {}, "n_top_genes": 0},
            {"name": "g", "tissue": {}, "graph": {"radios": 3}, "colour": 1},
            {"name": "h", "tissue": {}},
            {"name": "h", "tissue": {}},
        ],
        "methods": [
            {"name": "dustedd"},
            {"name": "dusted", "params": {"n_epoch": 3}},
            {"name": "neighbor_mean", "params": {"n_hops": 0}},
            {"name": "raw"},
            {"name": "raw"},
            {"label": "nameless"},
        ],
        "metrics": [
            {"name": "reconstructon"},
            {"name": "clustering", "args": {"n_run": 3}},
            {"name": "held_out", "args": {"genes": ["gene1"]}},
            {"name": "smoothing", "datasets": []},
        ],
    }
    with pytest.raises(ValueError, match="problems") as caught:
        benchmark.run(wrong, folder=tmp_path / "out")
    lines = str(caught.value).splitlines()
    expected = [
        r"config: unknown key 'nmae'.*Did you mean 'name'",
        r"seeds: .*1\.5",
        r"seeds: .*-1",
        r"datasets\[0\] 'a': tissue takes no 'n_gene'.*Did you mean 'n_genes'",
        r"datasets\[1\] 'b': there is no 'missing.h5ad'",
        r"datasets\[2\] 'c': load.name='dlpfcc'.*Did you mean 'dlpfc'",
        r"datasets\[3\] 'd-\*': patterns='P9'",
        r"datasets\[4\] 'e': needs exactly one of",
        r"datasets\[5\] 'f': n_top_genes=0 must be",
        r"datasets\[6\] 'g': graph takes no 'radios'.*Did you mean 'radius'",
        r"datasets\[6\] 'g': unknown key 'colour'",
        r"methods\[0\] 'dustedd': method='dustedd'.*Did you mean 'dusted'",
        r"methods\[1\] 'dusted': .*'n_epoch'.*Did you mean 'n_epochs'",
        r"methods\[2\] 'neighbor_mean': neighbor_mean: n_hops=0 must be",
        r"methods\[5\] 'nameless': 'name' is missing",
        r"metrics\[0\] 'reconstructon': name='reconstructon'.*Did you mean 'reconstruction'",
        r"metrics\[1\] 'clustering': clustering takes no argument 'n_run'.*Did you mean 'n_runs'",
        r"metrics\[2\] 'held_out': held_out takes no argument 'genes'",
        r"metrics\[3\] 'smoothing': datasets=.* must have at least 1 item",
        r"datasets: 'h' occurs 2 times",
        r"methods: 'raw' occurs 2 times",
    ]
    for pattern in expected:
        assert [line for line in lines[1:] if re.search(pattern, line)], pattern
    assert len(lines) - 1 == len(expected)
    assert not (tmp_path / "out").exists()


def test_single_problems(config):
    smoothing = {"name": "smoothing"}
    for change, message in [
        ({"methods": [{"name": "raw", "datasets": ["lft"]}]}, "'lft' matches none .*Did you mean 'left'"),
        ({"metrics": [{**smoothing, "methods": ["two*", "DUSTED"]}]}, "'DUSTED' matches none"),
        ({"metrics": [{**smoothing, "datasets": ["left"]}]}, "'right': takes part in nothing"),
        ({"metrics": [smoothing, smoothing]}, "applies twice to 'raw' on 'left'"),
        ({"seeds": [1, 1]}, "seeds: occur more than once"),
        ({"seeds": 3}, "seeds=3 must be a list"),
        ({"methods": []}, r"methods=\[\] must have at least 1 item"),
        ({"name": 5}, "name=5 must be a string"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_config(config | change)


def test_metrics_need_labels_and_truth(tmp_path, config, hexagonal):
    del hexagonal.layers["true_mean"]
    hexagonal.write_h5ad(tmp_path / "own.h5ad")
    own = {"name": "own", "path": str(tmp_path / "own.h5ad")}
    config["datasets"].append(own)
    config["metrics"].append({"name": "clustering"})
    with pytest.raises(
        ValueError, match=r"2 problems(.|\n)*needs truth, which 'own' lack(.|\n)*needs labels, which 'own' lack"
    ):
        read_config(config)
    own |= {"labels": "regoin", "truth": "true_mean"}
    with pytest.raises(ValueError, match="'regoin' is not in obs of 'own.h5ad'.*Did you mean 'region'"):
        read_config(config)
    own |= {"labels": "region"}
    with pytest.raises(ValueError, match="'true_mean' is not in layers of 'own.h5ad'"):
        read_config(config)
    del own["truth"]
    config["metrics"][0]["datasets"] = ["left", "right"]
    assert len(read_config(config).units()) == 9


def test_a_file_is_known_by_its_content(tmp_path, config, hexagonal):
    def hashes(name):
        own = {"name": "own", "path": str(tmp_path / name)}
        plan = read_config(config | {"datasets": [own], "metrics": [{"name": "smoothing"}]})
        return [unit.hash for unit in plan.units()]

    hexagonal.write_h5ad(tmp_path / "one.h5ad")
    first = hashes("one.h5ad")
    (tmp_path / "one.h5ad").rename(tmp_path / "two.h5ad")
    assert hashes("two.h5ad") == first
    hexagonal[:50].copy().write_h5ad(tmp_path / "two.h5ad")
    assert not set(hashes("two.h5ad")) & set(first)


def test_labels_are_no_part_of_the_hash_and_parameters_are(config):
    def hashes():
        return [unit.hash for unit in read_config(config).units()]

    first = hashes()
    assert len(set(first)) == 6
    config["methods"][2]["label"] = "another name"
    config["datasets"][0]["name"] = "another data set"
    config["name"] = "another title"
    assert hashes() == first
    config["methods"][2]["params"] = {"n_hops": 3}
    assert [a == b for a, b in zip(first, hashes(), strict=True)] == [True, True, False] * 2
    config["seeds"] = [1]
    assert not set(first) & set(hashes())


def test_no_toml(tmp_path):
    path = tmp_path / "config.toml"
    for content in (b"name = ", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not TOML"):
            read_config(path)
    with pytest.raises(FileNotFoundError, match="there is no config"):
        read_config(tmp_path / "other.toml")
    with pytest.raises(TypeError, match="config must be"):
        read_config(5)
