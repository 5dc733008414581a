import logging
import re

import anndata as ad
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse

import stdenoise as st
from stdenoise._io.read import layers_of
from stdenoise.methods import DCA, DUSTED, STAGATE
from stdenoise.tl import _plan as _plan
from stdenoise.tl._plan import Plan, Size, announce, make_plan

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# A section of 2 million spots and 500 genes: 2 GB of counts, 12 GB of results.
LARGE = Size(2_000_000, 500, 250_000_000)


@pytest.fixture
def free(monkeypatch):
    """Set what is free on CPU and GPU, in GB."""

    def set_free(cpu, cuda=None):
        monkeypatch.setattr(_plan, "free_gb", lambda device: {"cpu": cpu, "cuda": cuda}[device])

    return set_free


def plan(denoiser=None, size=LARGE, **options):
    return make_plan(
        denoiser or DUSTED(), size, **{"n_arrays": 3, "memory": None, "device": CPU, "may_stream": True, **options}
    )


def least_memory(denoiser, size, **options):
    """Find the least memory that a plan accepts, in GB, without knowing how it counts."""
    low, high = 0.0, 1e6
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        try:
            plan(denoiser, size, memory=middle, **options)
        except MemoryError:
            low = middle
        else:
            high = middle
    return high


# The choice


def test_less_and_less_memory_leads_from_all_spots_to_patches_to_the_disk():
    kinds, sizes = [], []
    for memory in np.geomspace(400, 2.3, 60):
        made = plan(memory=float(memory))
        kinds.append((made.max_spots is None, made.streamed))
        sizes.append((made.streamed, made.max_spots or LARGE.n_spots))
        assert made.budget == memory
        assert sum(made.parts.values()) <= memory
    # Patches on disk have more room again, as the counts are not in memory.
    assert [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    for streamed in (False, True):
        of_kind = [size for was_streamed, size in sizes if was_streamed == streamed]
        assert of_kind == sorted(of_kind, reverse=True)
        assert of_kind[0] > of_kind[-1]


def test_what_may_and_has_to_stay_on_disk():
    assert plan(memory=5).streamed
    with pytest.raises(MemoryError, match=r"out= and a \.zarr"):
        plan(memory=5, may_stream=False)
    whole = plan(memory=30, may_stream=False)
    assert (whole.max_spots is None, whole.streamed) == (False, False)
    assert not plan(memory=400).streamed
    held = plan(memory=400, must_stream=True)
    # All spots at a time, read from the disk.
    assert (held.max_spots, held.streamed) == (None, True)


def test_few_spots_at_a_time_are_worked_on_from_the_disk():
    least = least_memory(DUSTED(), LARGE, may_stream=False)
    # Little is left beside counts and results: patches would be mostly halo.
    assert plan(memory=least, may_stream=False).max_spots < _plan._FEW_SPOTS
    assert plan(memory=least).streamed
    assert plan(memory=least).max_spots > 50 * plan(memory=least, may_stream=False).max_spots
    assert plan(memory=least + 1) == plan(memory=least + 1, may_stream=False)


def test_sixty_per_cent_of_what_is_free_is_shared_by_processes_and_asked_for_memory_is_believed(free):
    small = Size(100_000, 500, 12_500_000)
    free(400.0, 50.0)
    assert plan() == plan(memory=0.6 * 400)
    assert plan(size=small, n_processes=4).budget == pytest.approx(0.6 * 400 / 4)
    # What was asked for is for each of them, and a GPU is not shared.
    assert plan(size=small, memory=9, n_processes=4).budget == 9
    assert plan(size=small, device=GPU, n_processes=4).budget == pytest.approx(0.6 * 50)
    assert plan(size=small, device=GPU, memory=20).budget == 20
    free(0.5)
    assert plan(memory=400).max_spots is None
    with pytest.raises(MemoryError, match=r"may use 0\.30 GB"):
        plan()


def test_the_plan_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        made = plan(memory=30)
    (line,) = caplog.messages
    assert line == f"plan: {made}"
    assert re.fullmatch(rf"plan: {made.max_spots} spots at a time, counts on cpu; .* of 30\.00 GB", line)
    for name, gb in made.parts.items():
        assert f"{name} {gb:.2f}" in line
    assert str(plan(memory=400)).startswith("all spots at a time, counts on cpu; ")
    assert " spots at a time, counts and results on disk; " in str(plan(memory=5))


METHODS = pytest.mark.parametrize("denoiser", [DUSTED(), STAGATE(), DCA()], ids=lambda method: method.info.name)


@METHODS
def test_a_refusal_names_what_is_enough_and_no_more(denoiser):
    for may_stream in (False, True):
        with pytest.raises(MemoryError) as caught:
            plan(denoiser, memory=0.25, may_stream=may_stream)
        message = str(caught.value)
        match = re.match(
            rf"{denoiser.info.name} on 2000000 spots x 500 genes needs about ([\d.]+) GB on cpu \((.*)\), .* 0\.25 GB; "
            "give more memory",
            message,
        )
        needed, parts = float(match[1]), [float(part.split()[-1]) for part in match[2].split(" + ")]
        assert needed == pytest.approx(sum(parts), abs=0.01 * len(parts))
        assert "\n" not in message
        plan(denoiser, memory=needed + 0.01, may_stream=may_stream)
        with pytest.raises(MemoryError):
            plan(denoiser, memory=0.95 * needed, may_stream=may_stream)


# Estimates


@METHODS
@given(
    n_spots=some.integers(100, 3_000_000),
    n_genes=some.integers(10, 30_000),
    share=some.floats(0.001, 1),
    may_stream=some.booleans(),
)
def test_more_data_never_takes_less_memory(denoiser, n_spots, n_genes, share, may_stream):
    size = Size(n_spots, n_genes, max(1, int(n_spots * n_genes * share)))
    least = least_memory(denoiser, size, may_stream=may_stream)
    per_spot = size.n_counts / n_spots
    for larger in (
        # More spots of the same kind; more genes with the same counts; more counts.
        Size(2 * n_spots, n_genes, int(per_spot * 2 * n_spots)),
        Size(n_spots, 2 * n_genes, size.n_counts),
        Size(n_spots, n_genes, 2 * size.n_counts),
    ):
        assert least_memory(denoiser, larger, may_stream=may_stream) >= least * (1 - 1e-6)


def test_memory_on_disk_hardly_follows_the_number_of_spots():
    one, ten = (least_memory(DUSTED(), Size(n, 500, 125 * n), may_stream=True) for n in (10**6, 10**7))
    # Coordinates, edges and partitions stay in memory.
    assert ten < one + 9e6 * 1e-6
    assert least_memory(DUSTED(), Size(10**7, 500, 125 * 10**7), may_stream=False) > 5 * ten


def test_larger_networks_and_more_arrays_take_more():
    for small, large in (
        (DUSTED(likelihood="nb"), DUSTED(likelihood="zinb")),
        (DUSTED(gene_attention=False), DUSTED()),
        (DUSTED(n_hidden=64), DUSTED(n_hidden=512)),
        (STAGATE(n_hidden=64), STAGATE(n_hidden=512)),
        (DCA(hidden=(16, 8, 16)), DCA()),
        (DCA(batch_size=32), DCA(batch_size=1024)),
    ):
        assert least_memory(small, LARGE) < least_memory(large, LARGE), small
    one, three = (least_memory(DUSTED(), LARGE, may_stream=False, n_arrays=n) for n in (1, 3))
    # Two more float32 arrays of 2 million x 500.
    assert three - one == pytest.approx(8, rel=1e-3)


# GPU


def test_counts_are_near_the_gpu_only_where_they_fit_twice(free):
    free(400)
    places = [plan(device=GPU, memory=float(gb)) for gb in np.linspace(80, 1, 100)]
    devices = [made.data_device.type for made in places]
    assert devices == sorted(devices, reverse=True)
    assert set(devices) == {"cuda", "cpu"}
    for made in places:
        assert set(made.parts) == {"network", "work"} | ({"counts"} if made.data_device.type == "cuda" else set())
        assert sum(made.parts.values()) <= made.budget
        assert not made.streamed
    # 2 GB of counts and a small network.
    assert 4 < min(made.budget for made in places if made.data_device == GPU) < 8


def test_a_small_host_streams_whatever_the_gpu_has_and_a_small_gpu_is_refused(free):
    free(8, 80)
    made = plan(device=GPU)
    assert made.streamed
    assert made.data_device == CPU
    with pytest.raises(MemoryError, match=r"GB on cpu .* 4\.80 GB; give fewer genes\. .*\.zarr"):
        plan(device=GPU, may_stream=False)
    free(400, 0.1)
    # The disk is of no help to it.
    for may_stream in (False, True):
        with pytest.raises(MemoryError, match=r"GB on cuda .* 0\.06 GB; give more memory, or fewer genes\.$"):
            plan(device=GPU, may_stream=may_stream)


# What is computed does not depend on the plan

NETWORK = {"n_hidden": 8, "n_latent": 3, "n_epochs": 4}
# Large steps from where the means are not far off.
STEPS = {"gate_reduction": 4, "alpha": 0.1, "lr": 1e-2}
RUNS = {
    "fast": ("dusted", {**NETWORK, **STEPS, "schedule": "fast"}),
    "paper, batches": (
        "dusted",
        {**NETWORK, **STEPS, "schedule": "paper", "batch_size": 150, "likelihood": "nb"},
    ),
    "stagate": ("stagate", NETWORK),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_least_memory_gives_the_result_of_much_memory(caplog, name):
    section = st.datasets.tissue(n_spots=300, n_genes=12)
    st.pp.spatial_graph(section)
    method, params = RUNS[name]
    denoiser = {"dusted": DUSTED, "stagate": STAGATE}[method](**params)
    whole = st.tl.denoise(section, method, compute=st.Compute(memory=100), copy=True, **params)
    size = Size(*section.shape, section.X.nnz)
    n_arrays = len(set(denoiser.info.writes) - {"latent"})
    least = least_memory(denoiser, size, may_stream=False, n_arrays=n_arrays)
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        tight = st.tl.denoise(section, method, compute=st.Compute(memory=least), copy=True, **params)
    (line,) = [message for message in caplog.messages if message.startswith("plan")]
    assert int(re.search(r"plan: (\d+) spots at a time", line)[1]) < 100
    for key, value in layers_of(whole).items():
        np.testing.assert_allclose(tight.layers[key], value, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(tight.obsm[f"X_{method}"], whole.obsm[f"X_{method}"], rtol=2e-4, atol=1e-5)
    for key, values in whole.uns[method]["history"].items():
        np.testing.assert_allclose(tight.uns[method]["history"][key], values, rtol=2e-4)
    # Much was trained, so that equality means something.
    loss = whole.uns[method]["history"]["loss"]
    assert loss[-1] < 0.99 * loss[0]


def wide(n_spots, n_genes):
    """Spots in a row, each with one count."""
    adata = ad.AnnData(sparse.eye_array(n_spots, n_genes, format="csr", dtype=np.float32))
    adata.obsm["spatial"] = np.stack([np.arange(n_spots), np.zeros(n_spots)], axis=1)
    st.pp.spatial_graph(adata, radius=1)
    return adata


def test_the_arrays_that_are_written_count_and_what_does_not_fit_is_refused_before_any_work(unchanged):
    # An array of the result has 0.04 GB.
    adata = wide(2000, 5000)
    for method, params, arrays, n_arrays in (
        ("dusted", {}, None, 3),
        ("dusted", {"likelihood": "nb"}, None, 2),
        ("dusted", {}, ["latent"], 1),
        ("dusted", {}, ["mean", "dropout"], 2),
        ("dca", {"likelihood": "poisson"}, None, 1),
        ("stagate", {}, None, 1),
    ):
        with unchanged(adata), pytest.raises(MemoryError) as caught:
            st.tl.denoise(adata, method, arrays=arrays, compute=st.Compute(memory="100 MB"), **params)
        assert f"{method} on 2000 spots x 5000 genes" in str(caught.value)
        assert f"results {0.04 * n_arrays:.2f}" in str(caught.value)


# What all genes cost is said first

ROOMY = Plan(None, False, CPU, {"process": 0.5, "results": 1.5}, 10.0)


def test_many_genes_on_the_cpu_are_announced_with_what_they_cost(caplog):
    many = Size(3000, 8000, 10**6)
    announce(DUSTED(), many, ROOMY, CPU)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in ("8000 genes", "2.0 GB", "highly_variable"):
        assert part in record.message
    assert re.search(r"\d+ (seconds|minutes)", record.message)
    caplog.clear()
    # It does not say how long it takes.
    announce(STAGATE(), many, ROOMY, CPU)
    assert "2.0 GB" in caplog.text
    assert "roughly" not in caplog.text
    caplog.clear()
    announce(DUSTED(), Size(3000, 5000, 10**6), ROOMY, CPU)
    announce(DUSTED(), many, ROOMY, GPU)
    assert not caplog.records


def test_a_chosen_gene_list_is_not_announced(caplog):
    adata = wide(20, 5001)
    settings = {"n_epochs": 1, "n_hidden": 4, "n_latent": 2, "gene_attention": False}
    for genes, announced in ((list(adata.var_names), False), (None, True)):
        st.tl.denoise(adata, genes=genes, copy=True, **settings)
        assert ("5001 genes on the CPU" in caplog.text) == announced


@pytest.mark.parametrize(("schedule", "n_epochs"), [("paper", 500), ("fast", 20)])
def test_the_work_follows_spots_genes_and_epochs(schedule, n_epochs):
    def work(n_spots, n_genes, **params):
        return DUSTED(schedule=schedule, gene_attention=False, **params).training_work(n_spots, n_genes, 0)

    flops, updates = work(6000, 1000)
    # Three heads, each with one product forward and two backward, of two operations.
    per_step = 3 * 6 * 6000 * 1000 * 512
    assert flops == pytest.approx(n_epochs * per_step * (1 if schedule == "paper" else 2.2))
    assert work(6000, 2000)[0] == pytest.approx(2 * flops)
    assert work(12000, 1000)[0] == pytest.approx(2 * flops)
    assert work(6000, 1000, n_epochs=2 * n_epochs) == pytest.approx((2 * flops, 2 * updates))
    assert updates == 4 * 1000 * 512 * n_epochs * (1 if schedule == "paper" else 24)
