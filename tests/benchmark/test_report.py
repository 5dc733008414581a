import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

from stdenoise import benchmark
from stdenoise.benchmark import _figures, _report, _tables


def tables(text):
    """All tables of a Markdown text, by the heading they stand under."""
    out, heading = {}, None
    for block in re.split(r"\n\n+", text):
        if block.startswith("#"):
            heading = block.lstrip("# ")
        if block.startswith("|"):
            header, rule, *rows = (
                [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()
            )
            assert all(re.fullmatch("---:?", part) for part in rule)
            out.setdefault(heading, pd.DataFrame(rows, columns=header).set_index(header[0]))
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    config = {
        "name": "the table",
        "seeds": [0, 1],
        "datasets": [
            {"name": "*", "simulate": {"patterns": ["P1", "P2"], "settings": [1, 4], "n_spots": 60, "n_genes": 15}},
            {"name": "a|b", "tissue": {"n_spots": 40, "n_genes": 12}},
        ],
        "methods": [
            {"name": "raw"},
            {"name": "gene_mean"},
            {
                "label": "DUSTED",
                "name": "dusted",
                "params": {"n_epochs": 1, "n_hidden": 4, "n_latent": 2, "gate_reduction": 4, "lr": 1e-6},
            },
        ],
        "metrics": [
            {"name": "reconstruction", "scores": ["mse", "pearson_*"]},
            {
                "name": "clustering",
                "args": {"n_components": 3, "n_runs": 2},
                "datasets": ["P?-?"],
                "scores": ["ari*", "n_*"],
            },
            {"name": "smoothing", "methods": ["DUSTED"], "scores": "variance_kept"},
        ],
    }
    table = benchmark.run(config, folder=folder, n_jobs=0)
    path = benchmark.report(folder)
    return folder, table, path.read_text()


def rows_of(table, metric, score):
    return table[(table["metric"] == metric) & (table["score"] == score)]


@pytest.mark.parametrize(
    ("metric", "score", "best"),
    [("reconstruction", "mse", "min"), ("clustering", "ari", "max"), ("smoothing", "variance_kept", None)],
)
def test_the_report_says_what_the_table_says(finished, metric, score, best):
    folder, table, text = finished
    rows = rows_of(table, metric, score)
    shown = tables(text)[f"{metric}: {score}"]
    expected = rows.groupby(["method", "columns"])["value"].agg(["mean", "std", "count"])
    columns = ["setting 1", "setting 4"] + (["a\\|b"] if metric != "clustering" else [])
    assert list(shown.columns) == columns + (["mean rank"] if best else [])
    for column in columns:
        own = expected.xs(column.replace("\\|", "|"), level="columns")
        for method, line in own.iterrows():
            text_of_cell = shown.loc[method, column]
            mean, spread = text_of_cell.strip("*").split(" ± ")
            assert float(mean) == pytest.approx(line["mean"], rel=1e-3)
            assert float(spread) == pytest.approx(line["std"], rel=1e-3, abs=1e-12)
            assert line["count"] == (2 if "b" in column else 4)
            is_best = best is not None and line["mean"] == getattr(own["mean"], best)()
            assert text_of_cell.startswith("**") == is_best
    if best:
        ranks = (
            rows.groupby(["dataset", "method"])["value"].mean().unstack().rank(axis=1, ascending=best == "min").mean()
        )
        for method, rank in ranks.items():
            assert float(shown.loc[method, "mean rank"]) == pytest.approx(rank, rel=1e-3)


def test_who_does_not_beat_the_baselines(finished):
    folder, table, text = finished
    for metric, score, sign in (("reconstruction", "mse", -1), ("clustering", "ari", 1)):
        section = text.split(f"## {metric}: {score}\n")[1].split("\n## ")[0]
        mean = rows_of(table, metric, score).groupby(["columns", "method"])["value"].mean().unstack() * sign
        losing = [
            c for c in mean.index if not mean.loc[c, "DUSTED"] > max(mean.loc[c, "raw"], mean.loc[c, "gene_mean"])
        ]
        sentences = re.findall(r"^- (.*) does not beat the best plain baseline on (.*)\.$", section, flags=re.MULTILINE)
        assert [name for name, _ in sentences] == (["DUSTED"] if losing else [])
        if losing:
            named = re.findall(r"([^(),]+) \(([-\d.e]+); (\S+) ([-\d.e]+)\)", sentences[0][1])
            assert {column.strip() for column, *_ in named} == set(losing)
            for column, own, rival, best in named:
                line = mean.loc[column.strip()] * sign
                assert (float(own), float(best)) == pytest.approx((line["DUSTED"], line[rival]), rel=1e-3)
    # One epoch at this rate teaches nothing, so there is something to say.
    assert "DUSTED does not beat" in text


def test_files(finished):
    folder, table, text = finished
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results.csv"), table, check_dtype=False)
    pytest.importorskip("pyarrow")
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "results.parquet"), table, check_dtype=False)
    linked = re.findall(r"!\[.*\]\((.*)\)", text)
    assert {"figures/ranks.png", "figures/cost.png", "figures/reconstruction_mse.png"} <= set(linked)
    assert sorted(linked) == sorted(f"figures/{path.name}" for path in (folder / "figures").iterdir())
    for name in linked:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert list(folder.rglob(".*")) == []


def test_scores_that_are_asked_for_are_shown_but_no_counts_and_spreads(finished):
    folder, table, text = finished
    assert {"mse", "rmse", "ssim", "cosine", "nmi", "n_scored", "ari_sd"} <= set(table["score"])
    asked = ["mse", "pearson_gene", "pearson_gene_median", "pearson_spot"]
    assert {heading for heading in tables(text) if ":" in heading} == {
        *(f"reconstruction: {score}" for score in asked),
        "clustering: ari",
        "smoothing: variance_kept",
    }
    assert "not ranked" in text.split("## smoothing: variance_kept")[1].split("|")[0]
    assert len(list((folder / "figures").iterdir())) == 6 + 2


def test_null_tests_stand_side_by_side():
    columns = ["dataset", "columns", "method", "metric", "metric_name", "score", "value"]
    rows = [["d", "d", "raw", "nulls", "null_test", f"kept_{run}", i] for i, run in enumerate(("real", "redrawn"))]
    shown = _report._shown(pd.DataFrame(rows, columns=columns), {"nulls": ["kept"]})
    assert list(zip(shown["score"], shown["columns"], strict=True)) == [("kept", "d, real"), ("kept", "d, redrawn")]


def test_time_and_memory(finished):
    folder, table, text = finished
    shown = tables(text)["Time and memory"]
    fits = table.drop_duplicates(["dataset", "method", "seed"])
    mean = fits[(fits["method"] == "DUSTED") & (fits["columns"] == "setting 1")]["seconds"].mean()
    assert float(shown.loc["DUSTED", "setting 1"].split(" ± ")[0]) == pytest.approx(mean, rel=1e-3)
    assert "Peak memory" not in text  # nothing was measured in this process


def test_without_pyarrow_and_figures(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    for name in ("results.csv", "results.parquet", "report.md"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "figures")
    monkeypatch.setattr(_report, "find_spec", lambda name: None)
    text = benchmark.report(folder, figures=False).read_text()
    assert "![" not in text
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == ["plan.json", "report.md", "results.csv"]


def test_figures_leave_the_users_plots_alone(finished, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    _figures.box_plot(rows_of(finished[1], "reconstruction", "mse"), title="mse", note="")
    assert "matplotlib.pyplot" not in sys.modules


def frame(values):
    """Rows of one score, from method to values by data set."""
    return pd.DataFrame(
        [
            {"dataset": f"d{i}", "columns": f"d{i}", "method": m, "method_name": m, "value": v}
            for m, line in values.items()
            for i, v in enumerate(line)
        ]
    )


def test_ranks_with_ties_and_undefined_scores():
    rows = frame({"raw": [1.0, 2.0], "gene_mean": [1.0, 1.0], "x": [3.0, np.nan]})
    assert dict(_tables.mean_ranks(rows, -1)) == {"raw": 1.75, "gene_mean": 1.25, "x": 3.0}
    assert dict(_tables.mean_ranks(rows, 1)) == {"raw": 1.75, "gene_mean": 2.25, "x": 2.0}


def test_equal_is_not_better():
    rows = frame({"raw": [1.0, 2.0, 3.0], "x": [1.0, 1.0, np.nan]})
    [sentence] = _tables.not_better(rows, -1)
    assert sentence == "x does not beat the best plain baseline on d0 (1; raw 1), d2 (–; raw 3)."
    assert _tables.not_better(frame({"raw": [2.0], "x": [1.0]}), -1) == []
    assert _tables.not_better(frame({"x": [1.0]}), -1) == []


def test_cells():
    assert _tables.cell([1.0]) == "1"
    assert _tables.cell([1.0, 3.0, np.nan]) == "2 ± 1.414"
    assert _tables.cell([np.nan]) == "–"
    assert _tables.markdown(["a", "b"], [["x|y", "1"]])[2] == "| x\\|y | 1 |"
