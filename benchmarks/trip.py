"""The trip of the counts: functions of ours that are entered between a call and its result, and how often a call crosses from room to room.

Usage: python benchmarks/trip.py

A tissue of 300 spots x 40 genes made in code: MAGIC, one epoch of DUSTED in memory, and one from disk to disk. A crossing is a pair of a
room and a function of another room that is called from it; each pair counts once. Rooms are the first level below the package.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import stdenoise as st

PACKAGE = Path(st.__file__).parent


def room_of(file):
    return Path(file).relative_to(PACKAGE).parts[0].removesuffix(".py")


def traced(call):
    """Functions of ours, their files and rooms, and the crossings, of a call."""
    functions, crossings = set(), set()

    def ours(frame):
        while frame is not None and not frame.f_code.co_filename.startswith(str(PACKAGE)):
            frame = frame.f_back
        return frame

    def profile(frame, event, _):
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(PACKAGE)) or code.co_name.startswith("<"):
            return
        functions.add((code.co_filename, code.co_qualname))
        caller = ours(frame.f_back)
        if caller is not None and room_of(caller.f_code.co_filename) != room_of(code.co_filename):
            crossings.add((room_of(caller.f_code.co_filename), code.co_filename, code.co_qualname))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    files = {file for file, _ in functions}
    return len(functions), len(files), len({room_of(file) for file in files}), len(crossings)


def main():
    warnings.simplefilter("ignore")
    adata = st.datasets.tissue(n_spots=300, n_genes=40)
    st.pp.spatial_graph(adata)
    params = {"method": "dusted", "n_epochs": 1, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.zarr", Path(folder) / "out.zarr"
        adata.write_zarr(source)
        import anndata as ad

        trips = {
            "MAGIC": lambda: st.tl.denoise(adata, "magic"),
            "DUSTED in memory": lambda: st.tl.denoise(adata, **params),
            "DUSTED from disk to disk": lambda: st.tl.denoise(ad.experimental.read_lazy(source), out=out, **params),
        }
        # What is loaded lazily is loaded now.
        for call in trips.values():
            call()
        print("| trip | functions | files | rooms | crossings |\n|---|---:|---:|---:|---:|")
        for name, call in trips.items():
            print(f"| {name} | " + " | ".join(map(str, traced(call))) + " |")


if __name__ == "__main__":
    main()
