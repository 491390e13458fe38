"""Ultrasound-like pictures with known lesions, drawn from a seed: the data set that needs no download.

A patient is a slice of tissue: echo level (dB) and attenuation on a canvas somewhat larger than a picture. Each picture
is one view of it: shifted and pressed, attenuated along the beam (which casts shadows below what absorbs and brightens
what lies below a lesion that doesn't), multiplied into complex scatterers, blurred by the point-spread function,
log-compressed. A lesion is dark where it lies, but shadows, fat lobules, vessels, muscle, the attenuated depth and
each view's gain make other places as dark: no single grey value separates it.

Lengths are in picture widths, levels in dB around glandular tissue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from amlp.params import PhantomParams

Array = NDArray[np.float64]

MARGIN = 0.16  # What the canvas shows beyond a picture: on each side, and below.
DYNAMIC_RANGE = 58.0  # dB from black to white.
GLAND_GREY = 0.46  # Where glandular tissue stands in it, before gain.


@dataclass(frozen=True)
class PhantomCase:
    """One picture: image (H, W) uint8, mask (H, W) bool, label `lesion` or `normal`."""

    case_id: str
    patient: str
    label: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class _Kind:
    """How a sort of lesion looks."""

    aspect: tuple[float, float]  # Width over height.
    level: tuple[float, float]  # dB.
    texture: float  # dB.
    rough: float  # Of the outline, as a share of the radius.
    softness: float  # Of the edge.
    rim: float  # dB by which the tissue round it is brighter.
    transparency: tuple[float, ...]  # dB per picture width by which it absorbs less than tissue; one of these.


_CYST = _Kind((1.1, 1.9), (-28.0, -23.0), 0.5, 0.02, 0.003, 4.0, (55.0,))
_SOLID = _Kind((1.1, 1.9), (-19.0, -14.0), 1.8, 0.06, 0.004, 6.0, (30.0,))
_IRREGULAR = _Kind((0.8, 1.15), (-20.0, -15.0), 1.8, 0.12, 0.006, 8.0, (14.0, -16.0))


@dataclass(frozen=True)
class _Canvas:
    """Coordinates of a patient's tissue: x across and y down, both (rows, columns), the picture's corner at (0, 0)."""

    x: Array
    y: Array
    pixel: float  # Length of a pixel's side.
    depth: float  # Depth of a picture.


@dataclass(frozen=True)
class _Tissue:
    """A patient, all (rows, columns): echo level in dB, attenuation in dB per picture width, lesion cover in 0..1."""

    echo: Array
    attenuation: Array
    lesion: Array


def _canvas(params: PhantomParams) -> _Canvas:
    pixel = 1.0 / params.width
    margin = round(MARGIN * params.width)
    rows = np.arange(params.height + margin) * pixel
    columns = (np.arange(params.width + 2 * margin) - margin) * pixel
    y, x = np.meshgrid(rows, columns, indexing="ij")
    return _Canvas(x, y, pixel, params.height * pixel)


def _noise(rng: np.random.Generator, canvas: _Canvas, length_y: float, length_x: float) -> Array:
    """Draw a Gaussian field of unit variance with these correlation lengths."""
    rows, columns = canvas.x.shape
    # Drawn as a spectrum: the cost doesn't grow with the length. It wraps round, which nobody sees.
    pass_y = np.exp(-2.0 * (np.pi * length_y * fft.fftfreq(rows, canvas.pixel)) ** 2)
    pass_x = np.exp(-2.0 * (np.pi * length_x * fft.rfftfreq(columns, canvas.pixel)) ** 2)
    spectrum = rng.standard_normal((rows, 2 * len(pass_x))).view(complex) * pass_y[:, None] * pass_x[None, :]
    spectrum[0, 0] = 0.0
    field = fft.irfft2(spectrum, s=(rows, columns))
    return field / max(field.std(), 1e-12)


def _curve(rng: np.random.Generator, x: Array, amplitude: float, waves: float) -> Array:
    """Draw a smooth curve over x with up to `waves` periods a picture width."""
    frequency = rng.uniform(0.2, waves, 4)
    phase = rng.uniform(0.0, 2.0 * np.pi, 4)
    weight = rng.normal(0.0, amplitude / 2.0, 4)
    return sum(w * np.sin(2.0 * np.pi * f * x + p) for w, f, p in zip(weight, frequency, phase, strict=True))


def _step(distance: Array, softness: float) -> Array:
    """0 well before an edge, 1 well behind it."""
    return 1.0 / (1.0 + np.exp(-np.clip(distance / softness, -30.0, 30.0)))


def _fibres(rng: np.random.Generator, canvas: _Canvas, bend: Array, *, length: float, thick: float) -> Array:
    """Draw thin, long, roughly horizontal fibres, 0..1, that follow the layers' bend (columns,)."""
    field = _noise(rng, canvas, thick, length)
    rows = np.arange(len(field))[:, None] - np.rint(bend / canvas.pixel).astype(int)[None, :]
    field = np.take_along_axis(field, rows % len(field), axis=0)
    # The zero lines of a smooth field are long thin curves; a second field makes them come and go.
    return np.exp(-((field / 0.33) ** 2)) * _step(_noise(rng, canvas, 2.5 * thick, 0.6 * length), 0.3)


def _ellipse(canvas: _Canvas, x: float, y: float, rx: float, ry: float, angle: float) -> tuple[Array, Array]:
    """Return each pixel's radius (1 on the ellipse) and polar angle."""
    cos, sin = np.cos(angle), np.sin(angle)
    dx, dy = canvas.x - x, canvas.y - y
    u, v = (cos * dx + sin * dy) / rx, (cos * dy - sin * dx) / ry
    return np.hypot(u, v), np.arctan2(v, u)


def _layers(rng: np.random.Generator, canvas: _Canvas) -> tuple[Array, Array, float]:
    """Draw skin, fat, gland and muscle; return echo, attenuation and the mean depth at which the gland begins."""
    skin = rng.uniform(0.02, 0.045)
    gland = rng.uniform(0.10, 0.24)
    muscle = canvas.depth * rng.uniform(0.72, 1.05)
    bend = _curve(rng, canvas.x[0], 0.05, 1.3)
    below_skin = _step(canvas.y - skin - 0.2 * bend, 0.003)
    below_fat = _step(canvas.y - gland - bend, 0.008)
    into_muscle = canvas.y - muscle - 0.7 * bend

    coarse = _noise(rng, canvas, 0.04, 0.09)
    fine = _noise(rng, canvas, 0.007, 0.035)
    fat = -8.5 + 1.5 * coarse + fine + 17.0 * _fibres(rng, canvas, 1.5 * bend, length=0.15, thick=0.030)
    fibrous = _fibres(rng, canvas, bend, length=rng.uniform(0.10, 0.20), thick=rng.uniform(0.014, 0.020))
    glandular = -2.5 + 2.5 * coarse + 2.5 * fine + 17.0 * fibrous
    striated = -15.0 + 2.0 * fine + 20.0 * _fibres(rng, canvas, 0.7 * bend, length=0.30, thick=0.018)

    echo = 8.0 + (fat - 8.0) * below_skin
    echo += (glandular - fat) * below_fat
    echo += (striated - glandular) * _step(into_muscle, 0.006) + 13.0 * np.exp(-((into_muscle / 0.012) ** 2))
    attenuation = rng.uniform(10.0, 32.0) * (0.4 + 1.2 * canvas.y / canvas.depth) + 4.0 * coarse
    return echo, attenuation, gland


def _distractors(rng: np.random.Generator, canvas: _Canvas, echo: Array, attenuation: Array, gland: float) -> None:
    """Add what is dark and no lesion: fat lobules, vessels, and absorbers that cast shadows. In place."""
    for _ in range(rng.integers(2, 6)):
        x, y = rng.uniform(-0.1, 1.1), rng.uniform(0.4, 1.0) * gland
        rx, ry = rng.uniform(0.06, 0.14), rng.uniform(0.02, 0.04)
        radius, _angle = _ellipse(canvas, x, y, rx, ry, rng.normal(0.0, 0.2))
        echo += _step(1.0 - radius, 0.08) * (-20.0 - echo) * 0.8 + 9.0 * np.exp(-(((radius - 1.15) / 0.12) ** 2))
    for _ in range(rng.integers(1, 4)):
        # A vessel or duct: long and thin.
        slope, bow = rng.normal(0.0, 0.4), rng.normal(0.0, 0.5)
        middle, length = rng.uniform(0.0, 1.0), rng.uniform(0.08, 0.2)
        along = canvas.x - middle
        line = rng.uniform(gland, canvas.depth) + slope * along + bow * along**2
        tube = np.exp(-(((canvas.y - line) / rng.uniform(0.010, 0.018)) ** 4)) * _step(length - np.abs(along), 0.01)
        echo -= 18.0 * tube
    for _ in range(rng.integers(1, 4)):
        # Absorbing tissue, or skin that the probe doesn't touch: dark from there down.
        middle, half = rng.uniform(-0.1, 1.1), rng.uniform(0.03, 0.11)
        top = rng.choice([0.0, rng.uniform(0.3, 1.0) * gland + 0.02])
        absorber = np.exp(-(((canvas.x - middle) / half) ** 2) - ((canvas.y - top) / 0.03) ** 2)
        attenuation += rng.uniform(150.0, 380.0) * absorber
        echo += 7.0 * absorber


def _lesion(rng: np.random.Generator, canvas: _Canvas, echo: Array, attenuation: Array, gland: float) -> Array:
    """Draw a lesion into echo and attenuation, in place; return its cover in 0..1, which is 1/2 on its outline."""
    kind = (_CYST, _SOLID, _IRREGULAR)[rng.choice(3, p=[0.25, 0.45, 0.30])]
    area = np.exp(rng.uniform(np.log(0.028), np.log(0.115))) * canvas.depth
    aspect = rng.uniform(*kind.aspect)
    rx, ry = np.sqrt(area / np.pi * aspect), np.sqrt(area / np.pi / aspect)
    x = rng.uniform(0.24, 0.76)
    low, high = gland + 0.55 * ry, 0.80 * canvas.depth - ry
    y = rng.uniform(low, high) if low < high else 0.45 * canvas.depth
    radius, angle = _ellipse(canvas, x, y, rx, ry, rng.normal(0.0, 0.25))

    outline = np.ones_like(radius)
    for lobes in (2, 3, 4):
        outline += rng.normal(0.0, kind.rough / lobes) * np.cos(lobes * angle + rng.uniform(0.0, 2.0 * np.pi))
    # Distance to the outline, so that the blur of the edge is as wide everywhere; a field makes it jagged.
    outside = (radius - outline) * np.sqrt(rx * ry) + 0.08 * kind.rough * _noise(rng, canvas, 0.018, 0.018)
    cover = _step(-outside, kind.softness)

    level = rng.uniform(*kind.level)
    # Tissue round a lesion is never as dark as the lesion: else nobody, and no one's mask, could find its edge.
    around = np.exp(-((np.maximum(outside, 0.0) / 0.08) ** 2)) * (1.0 - cover)
    echo += around * np.maximum(level + 11.0 - echo, 0.0)
    echo += kind.rim * np.exp(-(((outside - 0.016) / 0.012) ** 2))
    echo += cover * (level + kind.texture * _noise(rng, canvas, 0.03, 0.04) - echo)
    # Fluid and soft lesions absorb less than gland: what lies below gets brighter. Some irregular ones absorb more.
    attenuation -= cover * (rng.choice(kind.transparency) + np.maximum(attenuation - 12.0, 0.0))
    return cover


def _tissue(params: PhantomParams, rng: np.random.Generator, *, normal: bool) -> _Tissue:
    canvas = _canvas(params)
    echo, attenuation, gland = _layers(rng, canvas)
    _distractors(rng, canvas, echo, attenuation, gland)
    lesion = np.zeros_like(echo) if normal else _lesion(rng, canvas, echo, attenuation, gland)
    return _Tissue(echo, attenuation, lesion)


def _speckle(rng: np.random.Generator, echo: Array, pixels: float) -> Array:
    """Return the level in dB of scatterers of this echo level seen through a beam `pixels` wide: Rayleigh speckle."""
    looks = 4  # Spatial compounding, as scanners do it.
    parts = rng.standard_normal((2 * looks, *echo.shape), dtype=np.float32) * 10.0 ** (echo / 20.0)
    # Axially the pulse is shorter than the beam is wide.
    blurred = ndimage.gaussian_filter(parts, (0.0, 0.55 * pixels, pixels), mode="reflect", truncate=3.0)
    # What the blur leaves of the power of white noise, so that a level of 0 dB comes out as 0 dB.
    gain = 2 * looks / (4.0 * np.pi * 0.55 * pixels**2)
    return 10.0 * np.log10(np.einsum("khw,khw->hw", blurred, blurred) / gain + 1e-5)


def _view(
    params: PhantomParams, rng: np.random.Generator, tissue: _Tissue
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Take a picture of a patient: another shift, pressure, gain and speckle each time."""
    height, width = params.height, params.width
    rows, columns = np.indices((height, width), dtype=float)
    depth, across = rows / width, columns / width - 0.5
    press, stretch, shift = rng.uniform(0.93, 1.10), rng.uniform(0.94, 1.06), rng.uniform(-0.10, 0.10)
    wave = rng.uniform(0.006, 0.014) * np.sin(2.0 * np.pi * across * rng.uniform(0.5, 1.2) + rng.uniform(0.0, 6.3))
    source_y = press * depth + wave * np.minimum(depth / 0.25, 1.0)
    source_x = MARGIN + 0.5 + stretch * across + shift
    source = np.stack([source_y, source_x]) * width
    echo, attenuation, cover = (
        ndimage.map_coordinates(field, source, order=1, mode="nearest")
        for field in (tissue.echo, tissue.attenuation, tissue.lesion)
    )

    lost = ndimage.gaussian_filter1d(np.cumsum(attenuation, axis=0) / width, 0.02 * width, axis=1, mode="nearest")
    # The scanner's time gain makes up for a mean tissue, not for this one; so the depth is often dark.
    compensation = rng.uniform(6.0, 13.0) * depth
    gain = rng.uniform(-8.0, 7.0) + rng.normal(0.0, 6.0) * across
    level = _speckle(rng, echo, max(0.6, 0.0085 * width)) - lost + compensation + gain
    grey = np.clip(GLAND_GREY + level / DYNAMIC_RANGE, 0.0, 1.0) * 255.0
    return np.rint(grey).astype(np.uint8), cover >= 0.5


def _is_normal(patient: int, fraction: float) -> bool:
    """Whether patient number `patient` has no lesion: spread evenly, whatever the number of patients."""
    return int((patient + 1) * fraction) > int(patient * fraction)


def render_patient(*, params: PhantomParams, seed: int, patient: int) -> list[PhantomCase]:
    """Draw all pictures of one patient; they depend on seed, patient and the size, not on how many others there are."""
    normal = _is_normal(patient, params.normal_fraction)
    tissue = _tissue(params, np.random.default_rng([seed, patient]), normal=normal)
    cases = []
    for view in range(params.images_per_patient):
        image, mask = _view(params, np.random.default_rng([seed, patient, view + 1]), tissue)
        cases.append(
            PhantomCase(
                case_id=f"phantom_{patient:05d}_{view:02d}",
                patient=f"phantom-patient-{patient}",
                label="normal" if normal else "lesion",
                image=image,
                mask=mask,
            )
        )
    return cases


def generate(*, params: PhantomParams, seed: int) -> Iterator[PhantomCase]:
    """Draw the data set, patient by patient."""
    for patient in range(params.patients):
        yield from render_patient(params=params, seed=seed, patient=patient)
