import logging
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

import stdenoise as st
from stdenoise.methods import DCA, DUSTED, STAGATE
from stdenoise.tl import _open_run
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


def plan(denoiser=None, size=LARGE, *, memory=None, device=CPU, may_stream=True, n_arrays=3, must_stream=False):
    return make_plan(
        denoiser or DUSTED(),
        size,
        n_arrays=n_arrays,
        memory=memory,
        device=device,
        may_stream=may_stream,
        must_stream=must_stream,
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


def test_less_and_less_memory_leads_from_all_spots_to_patches_to_the_disk(free):
    free(1e6)
    kinds, sizes = [], []
    for memory in np.geomspace(400, 2.3, 200):
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


def test_without_a_zarr_to_write_to_nothing_goes_to_the_disk(free):
    free(1e6)
    made = plan(memory=30, may_stream=False)
    assert (made.max_spots is None, made.streamed) == (False, False)
    with pytest.raises(MemoryError, match=r"With out= and a \.zarr path, counts and results stay on disk"):
        plan(memory=5, may_stream=False)
    assert plan(memory=5).streamed


def test_what_is_on_disk_stays_there(free):
    free(1e6)
    made = plan(memory=400, must_stream=True)
    assert made.streamed
    assert not plan(memory=400).streamed
    # All spots at a time, read from the disk.
    assert made.max_spots is None


def test_few_spots_at_a_time_are_worked_on_from_the_disk(free):
    free(1e6)
    least = least_memory(DUSTED(), LARGE, may_stream=False)
    # Little is left beside counts and results: patches would be mostly halo.
    assert plan(memory=least, may_stream=False).max_spots < _plan._FEW_SPOTS
    assert plan(memory=least).streamed
    assert plan(memory=least).max_spots > 50 * plan(memory=least, may_stream=False).max_spots
    assert plan(memory=least + 1) == plan(memory=least + 1, may_stream=False)


def test_processes_share_what_is_free(free):
    free(400.0)
    size = Size(100_000, 500, 12_500_000)
    shared = make_plan(DUSTED(), size, n_arrays=3, memory=None, device=CPU, n_processes=4, may_stream=False)
    assert shared.budget == pytest.approx(0.6 * 400 / 4)
    # What was asked for is for each of them, and a GPU is not shared.
    asked = make_plan(DUSTED(), size, n_arrays=3, memory=9, device=CPU, n_processes=4, may_stream=False)
    assert asked.budget == 9
    free(400.0, 50.0)
    gpu = make_plan(DUSTED(), size, n_arrays=3, memory=None, device=GPU, n_processes=4, may_stream=False)
    assert gpu.budget == pytest.approx(0.6 * 50)


def test_sixty_per_cent_of_what_is_free(free):
    for gb in (10.0, 400.0):
        free(gb)
        by_default, given_memory = plan(), plan(memory=0.6 * gb)
        assert by_default == given_memory
        assert by_default.budget == pytest.approx(0.6 * gb)


def test_asked_for_memory_is_believed(free):
    free(0.1)
    assert plan(memory=400).max_spots is None


def test_the_plan_is_logged(free, caplog):
    free(1e6)
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        made = plan(memory=30)
    (line,) = caplog.messages
    assert line == f"plan: {made}"
    assert re.fullmatch(rf"plan: {made.max_spots} spots at a time, counts on cpu; .* of 30\.00 GB", line)
    for name, gb in made.parts.items():
        assert f"{name} {gb:.2f}" in line
    assert str(plan(memory=400)).startswith("all spots at a time, counts on cpu; ")
    assert " spots at a time, counts and results on disk; " in str(plan(memory=5))


# Refusal


@pytest.mark.parametrize("denoiser", [DUSTED(), STAGATE(), DCA()], ids=lambda method: method.info.name)
def test_a_refusal_names_the_numbers(free, denoiser):
    free(1e6)
    with pytest.raises(MemoryError) as caught:
        plan(denoiser, memory=0.25)
    message = str(caught.value)
    name = denoiser.info.name
    match = re.match(
        rf"{name} on 2000000 spots x 500 genes needs about ([\d.]+) GB on cpu \((.*)\), but may use 0\.25 GB", message
    )
    parts = [float(part.split()[-1]) for part in match[2].split(" + ")]
    assert float(match[1]) == pytest.approx(sum(parts), abs=0.01 * len(parts))
    assert "give more memory, or fewer genes" in message
    assert "\n" not in message


@pytest.mark.parametrize("may_stream", [False, True])
@pytest.mark.parametrize("denoiser", [DUSTED(), STAGATE(), DCA()], ids=lambda method: method.info.name)
def test_what_a_refusal_says_is_needed_is_enough(free, denoiser, may_stream):
    free(1e6)
    with pytest.raises(MemoryError) as caught:
        plan(denoiser, memory=0.25, may_stream=may_stream)
    needed = float(re.search(r"needs about ([\d.]+) GB", str(caught.value))[1])
    plan(denoiser, memory=needed + 0.01, may_stream=may_stream)
    with pytest.raises(MemoryError):
        plan(denoiser, memory=0.95 * needed, may_stream=may_stream)


def test_too_little_free_memory_is_refused_without_an_argument_too(free):
    free(0.5)
    with pytest.raises(MemoryError, match=r"but may use 0\.30 GB"):
        plan()


# Estimates


@pytest.mark.parametrize("denoiser", [DUSTED(), DUSTED(likelihood="nb"), STAGATE(), DCA()], ids=lambda m: m.label)
@pytest.mark.parametrize("may_stream", [False, True])
@given(data=some.data())
def test_more_data_never_takes_less_memory(denoiser, may_stream, data):
    n_spots = data.draw(some.integers(100, 3_000_000), label="spots")
    n_genes = data.draw(some.integers(10, 30_000), label="genes")
    share = data.draw(some.floats(0.001, 1), label="share of counts")
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


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (DUSTED(likelihood="nb"), DUSTED(likelihood="zinb")),
        (DUSTED(gene_attention=False), DUSTED()),
        (DUSTED(n_hidden=64), DUSTED(n_hidden=512)),
        (STAGATE(n_hidden=64), STAGATE(n_hidden=512)),
        (DCA(hidden=(16, 8, 16)), DCA()),
        (DCA(batch_size=32), DCA(batch_size=1024)),
    ],
    ids=lambda method: method.label,
)
def test_a_larger_network_takes_more(small, large):
    assert least_memory(small, LARGE) < least_memory(large, LARGE)


def test_more_arrays_take_more_where_they_are_in_memory():
    one, three = (least_memory(DUSTED(), LARGE, may_stream=False, n_arrays=n) for n in (1, 3))
    # Two more float32 arrays of 2 million x 500.
    assert three - one == pytest.approx(8, rel=1e-3)


# GPU


def test_a_gpu_has_its_own_memory(free):
    free(400, 50)
    made = plan(device=GPU)
    assert made.budget == pytest.approx(0.6 * 50)
    assert plan(device=GPU, memory=20).budget == 20
    assert set(made.parts) <= {"counts", "network", "work"}


def test_counts_are_near_the_gpu_only_where_they_fit_twice(free):
    free(400)
    places = [plan(device=GPU, memory=float(gb)) for gb in np.linspace(80, 1, 100)]
    devices = [made.data_device.type for made in places]
    assert devices == sorted(devices, reverse=True)
    assert set(devices) == {"cuda", "cpu"}
    for made in places:
        assert ("counts" in made.parts) == (made.data_device.type == "cuda")
        assert sum(made.parts.values()) <= made.budget
        assert not made.streamed
    # 2 GB of counts and a small network.
    assert 4 < min(made.budget for made in places if made.data_device == GPU) < 8


def test_a_small_host_streams_whatever_the_gpu_has(free):
    free(8, 80)
    made = plan(device=GPU)
    assert made.streamed
    assert made.data_device == CPU
    with pytest.raises(MemoryError, match=r"GB on cpu .* may use 4\.80 GB; give fewer genes\. With out= and a \.zarr"):
        plan(device=GPU, may_stream=False)


def test_a_gpu_that_is_too_small_is_refused(free):
    free(400, 0.1)
    # The disk is of no help to it.
    for may_stream in (False, True):
        with pytest.raises(MemoryError, match=r"GB on cuda .* may use 0\.06 GB; give more memory, or fewer genes\.$"):
            plan(device=GPU, may_stream=may_stream)


# What is computed does not depend on the plan

NETWORK = {"n_hidden": 8, "n_latent": 3, "n_epochs": 4}
# Large steps from where the means are not far off.
STEPS = {"gate_reduction": 4, "alpha": 0.1, "lr": 1e-2}
PAPER = {**NETWORK, **STEPS, "schedule": "paper"}
RUNS = {
    "fast": ("dusted", {**NETWORK, **STEPS, "schedule": "fast"}),
    "paper": ("dusted", PAPER),
    "paper, batches": ("dusted", {**PAPER, "batch_size": 150, "likelihood": "nb"}),
    "stagate": ("stagate", NETWORK),
    "stagate, batches": ("stagate", {**NETWORK, "batch_size": 150}),
}


@pytest.fixture(scope="module")
def section():
    adata = st.datasets.tissue(n_spots=400, n_genes=12)
    st.pp.spatial_graph(adata)
    return adata


@pytest.mark.parametrize("name", RUNS)
def test_the_least_memory_gives_the_result_of_much_memory(section, caplog, name):
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
    for key, value in whole.layers.items():
        np.testing.assert_allclose(tight.layers[key], value, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(tight.obsm[f"X_{method}"], whole.obsm[f"X_{method}"], rtol=2e-4, atol=1e-5)
    for key, values in whole.uns[method]["history"].items():
        np.testing.assert_allclose(tight.uns[method]["history"][key], values, rtol=2e-4)
    # Much was trained, so that equality means something.
    loss = whole.uns[method]["history"]["loss"]
    assert loss[-1] < 0.99 * loss[0]


@pytest.mark.parametrize(
    ("method", "params", "arrays", "n_arrays"),
    [
        ("dusted", {}, None, 3),
        ("dusted", {"likelihood": "nb"}, None, 2),
        ("dusted", {}, ["latent"], 1),
        ("dusted", {}, ["mean", "dropout"], 2),
        ("dca", {"likelihood": "poisson"}, None, 1),
        ("stagate", {}, None, 1),
    ],
    ids=str,
)
def test_the_plan_counts_the_arrays_that_are_written(section, monkeypatch, method, params, arrays, n_arrays):
    def plan(*_, n_arrays, **__):
        raise MemoryError(n_arrays)

    monkeypatch.setattr(_open_run, "make_plan", plan)
    with pytest.raises(MemoryError) as caught:
        st.tl.denoise(section, method, arrays=arrays, **params)
    assert caught.value.args == (n_arrays,)


def test_a_section_that_does_not_fit_is_refused_before_any_work(section, monkeypatch):
    monkeypatch.setattr(DUSTED, "train", lambda *_: pytest.fail("work was done"))
    with pytest.raises(MemoryError, match="dusted on 400 spots x 12 genes needs about"):
        st.tl.denoise(section, compute=st.Compute(memory="100 MB"))
    assert "dusted" not in section.uns


# What all genes cost is said first

ROOMY = Plan(None, False, CPU, {"process": 0.5, "results": 1.5}, 10.0)


def test_many_genes_on_the_cpu_are_announced(caplog):
    announce(DUSTED(), Size(3000, 8000, 10**6), ROOMY, CPU)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in ("8000 genes", "2.0 GB", "highly_variable"):
        assert part in record.message
    assert re.search(r"\d+ (seconds|minutes)", record.message)


@pytest.mark.parametrize(("n_genes", "device"), [(5000, "cpu"), (8000, "cuda")])
def test_few_genes_or_a_gpu_are_not(caplog, n_genes, device):
    announce(DUSTED(), Size(3000, n_genes, 10**6), ROOMY, torch.device(device))
    assert not caplog.records


def test_a_method_that_does_not_say_how_long_it_takes_says_what_it_needs(caplog):
    announce(STAGATE(), Size(3000, 8000, 10**6), ROOMY, CPU)
    assert "2.0 GB" in caplog.text
    assert "roughly" not in caplog.text


def test_a_chosen_gene_list_is_not_announced(monkeypatch, caplog):
    monkeypatch.setattr(_plan, "MANY_GENES", 10)
    adata = st.datasets.tissue(n_spots=60, n_genes=20)
    st.pp.spatial_graph(adata)
    settings = {"n_epochs": 1, "n_hidden": 4, "n_latent": 2}
    st.tl.denoise(adata, genes=list(adata.var_names[:15]), **settings)
    assert "genes on the CPU" not in caplog.text
    st.tl.denoise(adata, key_added="all", **settings)
    assert "20 genes on the CPU" in caplog.text


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
