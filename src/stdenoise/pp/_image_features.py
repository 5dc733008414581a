"""Features of the image around each spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_choice, check_name, check_number
from stdenoise._base.device import resolve_device
from stdenoise._base.settings import settings
from stdenoise._io.images import SpotImage, on_image, read_image, read_plane_coordinates, tiles
from stdenoise._io.read import check_anndata, output_of, read_libraries
from stdenoise.nn.resnet import ARCHITECTURES, load_resnet, pooled_features
from stdenoise.stats.discs import disc_means, disc_quantiles

if TYPE_CHECKING:
    from anndata import AnnData

_EXTRACTORS = ("mean_color", "intensity_quantiles", "torchvision")
_QUANTILES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_CROP_SIZE, _BATCH_SIZE, _ARCHITECTURE = 40, 64, "resnet50"


def image_features(
    adata: AnnData,
    *,
    extractor: str | Callable[[np.ndarray], np.ndarray] = "mean_color",
    image_key: str = "hires",
    library_key: str | None = None,
    library_id: str | None = None,
    image: np.ndarray | None = None,
    scale_factor: float | None = None,
    diameter: float | None = None,
    crop_size: int = _CROP_SIZE,
    batch_size: int = _BATCH_SIZE,
    weights: str | Path | None = None,
    architecture: str = _ARCHITECTURE,
    device: str = "auto",
    spatial_key: str = _keys.SPATIAL,
    key_added: str = "image_features",
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Describe the image around each spot, for methods that compare spots by what they look like.

    Reads images and scale factors as 10x writes them and scanpy and squidpy load them. Coordinates are in pixels of the full
    image, x and y; times `scale_factor` they are in pixels of the image that is read, the centre of whose first pixel is at
    0, 0.

    Parameters
    ----------
    adata
        Annotated data with coordinates of shape `(n_spots, 2)` in `obsm`.
    extractor
        `"mean_color"`: mean of each channel over the disc of the spot.
        `"intensity_quantiles"`: quantiles 0.2, 0.3, ..., 0.7 of each channel over the disc, those of the first channel first.
        `"torchvision"`: pooled features of a residual network, from a tile around the spot.
        A function: it gets tiles of shape `(n, crop_size, crop_size, n_channels)` with values as in the image, and returns
        features of shape `(n, n_features)`.
    image_key
        Name of the image in `uns["spatial"][library]["images"]`.
    library_key
        Column of `obs` naming the library of each spot, where each has an image of its own under that name in
        `uns["spatial"]`.
    library_id
        Name of the library in `uns["spatial"]` where all spots are on one image; the only one there if not given.
    image
        An image, shape `(height, width)` or `(height, width, n_channels)`, in place of the stored one.
    scale_factor
        Pixels of the image per pixel of the full one. If not given, `scalefactors["tissue_<image_key>_scalef"]` for a stored
        image, and 1 for one that is handed in.
    diameter
        Of the spots, for discs, in pixels of the full image; `scalefactors["spot_diameter_fullres"]` if not given.
    crop_size
        Side of the tiles in pixels of the image.
    batch_size
        Tiles that are handed to the network or function at a time.
    weights
        For `"torchvision"`: file with a state dict of the network, as `torch.save` writes it. Nothing is downloaded.
    architecture
        For `"torchvision"`: `"resnet18"`, `"resnet34"`, `"resnet50"`, `"resnet101"` or `"resnet152"`.
    device
        For `"torchvision"`: `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    spatial_key
        Key of the coordinates in `obsm`.
    key_added
        Key of the results.
    progress
        With tiles, show a progress bar on standard error; by default only on a terminal.
    copy
        Return a changed copy instead of changing `adata`.

    Returns
    -------
    `None`, or with `copy=True` an AnnData. Sets the following fields, where `image_features` stands for `key_added`:

    `obsm["image_features"]`
        Features, shape `(n_spots, n_features)`.
    `uns["image_features"]`
        How they were made.

    Raises
    ------
    KeyError
        There is no such library, image, scale factor or key.
    TypeError, ValueError
        The image or an argument is not valid or does not apply, or a spot is not on the image, not even in part.
    ImportError
        torchvision is asked for and not installed.

    Notes
    -----
    Of a disc that is partly outside the image the part inside counts. A tile repeats the pixels of the rim. Networks see tiles
    resized to 299 pixels, with the colour normalisation of ImageNet; a fourth channel is left out.

    Examples
    --------
    >>> import numpy as np
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> image = np.random.default_rng(0).uniform(size=(1500, 1500, 3))
    >>> st.pp.image_features(adata, image=image, diameter=55)
    >>> adata.obsm["image_features"].shape
    (100, 3)
    """
    check_anndata(adata)
    discs = extractor in ("mean_color", "intensity_quantiles")
    if not callable(extractor):
        check_choice("extractor", extractor, [*_EXTRACTORS, "a function"])
    _check_options(
        extractor,
        {
            "diameter": (diameter, None, discs),
            "crop_size": (crop_size, _CROP_SIZE, not discs),
            "batch_size": (batch_size, _BATCH_SIZE, not discs),
            "weights": (weights, None, extractor == "torchvision"),
            "architecture": (architecture, _ARCHITECTURE, extractor == "torchvision"),
            "device": (device, "auto", extractor == "torchvision"),
        },
    )
    check_number("crop_size", crop_size, minimum=1, integer=True)
    check_number("batch_size", batch_size, minimum=1, integer=True)
    show_progress = settings.show_progress(progress)
    _check_key(adata, key_added)
    coordinates = read_plane_coordinates(adata, spatial_key)
    if library_key is None:
        members = {library_id: np.arange(adata.n_obs)}
    elif library_id is not None or image is not None:
        other = "image" if library_id is None else "library_id"
        raise ValueError(f"library_key={library_key!r} and {other} exclude each other; give one.")
    else:
        names, codes = read_libraries(adata, library_key)
        members = {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}

    describe: Callable[[SpotImage, np.ndarray], np.ndarray]
    if discs:
        describe = _mean_color if extractor == "mean_color" else _intensity_quantiles
    else:
        function = extractor if callable(extractor) else _network(weights, architecture, device)

        def describe(picture: SpotImage, centres: np.ndarray) -> np.ndarray:
            return _of_tiles(function, picture, centres, crop_size, batch_size, show_progress)

    parts, factors = [], []
    for name, spots in members.items():
        picture = read_image(
            adata,
            library_id=name,
            image_key=image_key,
            image=image,
            scale_factor=scale_factor,
            diameter=diameter,
            need_diameter=discs,
        )
        where = "" if name is None else f"of {name!r} "
        if not np.isfinite(picture.pixels).all():
            raise ValueError(f"the image {where}has NaN or infinite pixels.")
        part = describe(picture, coordinates[spots] * picture.scale_factor)
        off = np.isnan(part).any(axis=1)
        if off.any():
            raise ValueError(
                f"{off.sum()} of {len(off)} spots {where}are not on {picture.describe(coordinates[spots])}"
            )
        parts.append(part)
        factors.append(picture.scale_factor)
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise ValueError(f"libraries have different numbers of features, {widths}: their images differ in channels.")
    features = np.empty((adata.n_obs, widths[0]), dtype=np.float32)
    for spots, part in zip(members.values(), parts, strict=True):
        features[spots] = part

    record: dict[str, Any] = {
        "extractor": extractor if isinstance(extractor, str) else getattr(extractor, "__name__", repr(extractor)),
        "image_key": image_key if image is None else "",
        "spatial_key": spatial_key,
        "library_key": library_key or "",
        "scale_factor": factors[0] if library_key is None else np.array(factors),
    }
    if library_key is not None:
        # Names as values: a "/" in a key would not survive the disk.
        record["libraries"] = np.array(list(members), dtype=object)
    if diameter is not None:
        record["diameter"] = float(diameter)
    if not discs:
        record["crop_size"] = crop_size
    if extractor == "torchvision":
        record |= {"architecture": architecture, "weights": Path(str(weights)).name}
    out = output_of(adata, copy=copy)
    out.obsm[key_added] = features
    out.uns[key_added] = record
    return out if copy else None


def _check_options(extractor: Any, options: Mapping[str, tuple[Any, Any, bool]]) -> None:
    """Raise for options that are set and do not apply; each is a value, a default and whether it applies."""
    for name, (value, default, applies) in options.items():
        if value != default and not applies:
            raise ValueError(f"{name}={value!r} does not apply to extractor={extractor!r}.")


def _check_key(adata: AnnData, key: str) -> None:
    """Raise when results under this key would overwrite something else."""
    check_name("key_added", key)
    record = adata.uns.get(key)
    ours = isinstance(record, Mapping) and "extractor" in record
    taken = [f"{place}[{key!r}]" for place in ("obsm", "uns") if key in getattr(adata, place)]
    if taken and not ours:
        raise ValueError(
            f"{' and '.join(taken)} exists and was not written by image_features; choose another name with key_added=."
        )


def _mean_color(picture: SpotImage, centres: np.ndarray) -> np.ndarray:
    return disc_means(picture.pixels, centres, picture.radius)


def _intensity_quantiles(picture: SpotImage, centres: np.ndarray) -> np.ndarray:
    return disc_quantiles(picture.pixels, centres, picture.radius, _QUANTILES).reshape(len(centres), -1)


def _network(weights: str | Path | None, architecture: str, device: str) -> Callable[[np.ndarray], np.ndarray]:
    if weights is None:
        raise ValueError("extractor='torchvision' needs weights=, a file with a state dict; nothing is downloaded.")
    check_choice("architecture", architecture, ARCHITECTURES)
    target = resolve_device(device)
    network = load_resnet(weights, architecture).to(target)
    return lambda batch: pooled_features(network, batch)


def _of_tiles(
    function: Callable[[np.ndarray], np.ndarray],
    picture: SpotImage,
    centres: np.ndarray,
    crop_size: int,
    batch_size: int,
    show_progress: bool,
) -> np.ndarray:
    """Features of the tiles, NaN where a tile is outside the image."""
    inside = np.flatnonzero(on_image(picture.pixels, centres, crop_size))
    found = []
    with tqdm(total=len(inside), desc="image_features", unit="spot", disable=not show_progress) as bar:
        for start in range(0, len(inside), batch_size):
            batch = inside[start : start + batch_size]
            features = np.asarray(function(tiles(picture.pixels, centres[batch], crop_size)))
            if features.ndim != 2 or len(features) != len(batch) or features.dtype.kind not in "iufb":
                raise ValueError(
                    f"extractor must return numbers of shape ({len(batch)}, n_features) for {len(batch)} tiles, not "
                    f"{features.dtype} of shape {features.shape}."
                )
            if not np.isfinite(features).all():
                raise ValueError("extractor returned NaN or infinite features.")
            found.append(features)
            bar.update(len(batch))
    if len({features.shape[1] for features in found}) > 1:
        raise ValueError("extractor returned different numbers of features for different tiles.")
    out = np.full((len(centres), found[0].shape[1] if found else 1), np.nan, dtype=np.float32)
    if found:
        out[inside] = np.concatenate(found)
    return out
