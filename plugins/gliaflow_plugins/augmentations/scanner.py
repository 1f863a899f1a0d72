"""Augmentations that change intensities as scanners do: contrast, coil, noise, blur. The mask stays.

``kspace`` has the artefacts of the acquisition, built on the same base.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from gliaflow_plugins.contracts import Image, Mask, Options

DEPTH = 4096  # values of a histogram's table: 12 bits, as in most scanners' images


class ScannerOptions(Options):
    probability: float = Field(default=1, ge=0, le=1, description="probability that a slice is changed")
    stripped: bool = Field(
        default=False, description="air of one value stays as it is, as if the skull had been stripped afterwards"
    )


class Scanner(ABC):
    """An augmentation of one sequence's intensities, at any scale.

    Air is the slice's lowest value, and its level the mean over the head. ``change`` sees air at 0 and the level at 1,
    so that gain and range do not depend on the image's unit: for a·image + b the result is a·result + b.

    The mask stays as it is: its border is that of the anatomy, which the network is to find however blurred the scanner
    shows it. No augmentation moves the head.
    """

    name: str
    options: type[ScannerOptions]

    @abstractmethod
    def change(self, signal: Image, rng: np.random.Generator, options: Any) -> Image:
        """The changed signal [H, W] float32. ``signal`` is a copy, ≥ 0; it may be overwritten."""

    def __call__(self, image: Image, mask: Mask, rng: np.random.Generator, options: Any, /) -> tuple[Image, Mask]:
        """Change the image, with the given probability. A slice of one value stays as it is."""
        air = image.min()
        signal = (image - air).astype(np.float32, copy=False)
        total = signal.sum()
        if rng.random() >= options.probability or not total:
            return image, mask
        level = np.vdot(signal, signal) / total  # the mean weighted by the signal itself: air adds next to nothing
        signal /= level
        changed = self.change(signal, rng, options)
        changed *= level
        changed += air
        if options.stripped:
            changed[image == air] = air
        return changed.astype(image.dtype, copy=False), mask


class BiasFieldOptions(ScannerOptions):
    strength: float = Field(default=0.3, ge=0, le=1, description="largest standard deviation of the gain's logarithm")


class BiasField(Scanner):
    """The uneven sensitivity of a coil: a smooth gain, never 0 or below.

    Its logarithm is a sum of cosines of up to 1.5 periods along each axis, the slower the stronger: the basis with
    which unified segmentation (Ashburner and Friston 2005) models the field, and N3 (Sled et al. 1998) the same
    by splines. Air stays air.
    """

    name = "bias-field"
    options = BiasFieldOptions

    def change(self, signal: Image, rng: np.random.Generator, options: BiasFieldOptions) -> Image:
        orders = np.arange(4)
        weights = rng.standard_normal((4, 4)) / (1 + np.square(orders) + np.square(orders)[:, None])
        weights[0, 0] = 0  # a constant gain is no field; the preprocessor scales it away
        weights *= rng.uniform(0, options.strength) / np.linalg.norm(weights)
        rows, columns = (_cosines(side) for side in signal.shape)
        signal *= np.exp(rows @ weights.astype(np.float32) @ columns.T)
        return signal


def _cosines(side: int) -> NDArray[np.float32]:
    """The first four cosines of the discrete transform [side, 4], each with mean square 1."""
    waves = np.cos(np.outer(np.arange(side) + 0.5, np.arange(4)) * (np.pi / side))
    waves[:, 1:] *= np.sqrt(2)
    return waves.astype(np.float32)


class GammaOptions(ScannerOptions):
    spread: float = Field(default=0.35, ge=0, le=1.5, description="the exponent is between e^−spread and e^spread")


class Gamma(Scanner):
    """Another contrast: a power of the intensities, as in nnU-Net (Isensee et al. 2021), SynthSeg (Billot et al. 2023).

    Air and the level of the head stay, as the preprocessor would scale them back: what changes is how far bright and
    dark tissue are from it.
    """

    name = "gamma"
    options = GammaOptions

    def change(self, signal: Image, rng: np.random.Generator, options: GammaOptions) -> Image:
        # numpy's power is four times as slow where air is 0
        with np.errstate(divide="ignore"):  # the logarithm of air is −∞, and its exponential 0 again
            np.log(signal, out=signal)
        signal *= np.float32(np.exp(rng.uniform(-options.spread, options.spread)))
        return np.exp(signal, out=signal)


class HistogramOptions(ScannerOptions):
    spread: float = Field(default=0.5, ge=0, le=2, description="standard deviation of the logarithm of a part's slope")
    parts: int = Field(default=8, ge=1, le=64, description="parts of the range of intensities, each with its own slope")


class Histogram(Scanner):
    """Another histogram: a random map of the intensities that rises everywhere, linear between landmarks.

    The landmarks are those with which Nyúl, Udupa and Zhang (2000) bring histograms together, moved at random; Models
    Genesis (Zhou et al. 2021) draws such maps as Bézier curves. Air and the level of the head stay.
    """

    name = "histogram"
    options = HistogramOptions

    def change(self, signal: Image, rng: np.random.Generator, options: HistogramOptions) -> Image:
        steps = np.exp(options.spread * rng.standard_normal(options.parts))
        landmarks = np.append(0, steps.cumsum())
        table = np.interp(np.linspace(0, options.parts, DEPTH), np.arange(options.parts + 1), landmarks)
        to_table = np.float32((DEPTH - 1) / signal.max())
        table /= table[round(float(to_table))]  # signal 1, the level, stays 1
        signal *= to_table
        signal += np.float32(0.5)
        mapped: Image = table.astype(np.float32).take(signal.astype(np.int32), mode="clip")
        return mapped


class RicianNoiseOptions(ScannerOptions):
    deviation: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="largest standard deviation of one channel's, as a share of the head's level",
    )


class RicianNoise(Scanner):
    """Noise of a magnitude image: the receiver's two channels each add Gaussian noise (Gudbjartsson and Patz 1995).

    Where the signal is strong, it looks Gaussian; in air it has the Rayleigh distribution, so that air becomes grey.
    """

    name = "rician-noise"
    options = RicianNoiseOptions

    def change(self, signal: Image, rng: np.random.Generator, options: RicianNoiseOptions) -> Image:
        # Box and Muller: radius and angle of both channels' noise, from uniform values, at half of a normal draw's cost
        deviation = rng.uniform(0, options.deviation)
        radius, angle = rng.random((2, *signal.shape), dtype=np.float32)
        np.log(np.subtract(1, radius, out=radius), out=radius)
        radius *= np.float32(-2 * deviation**2)  # squared
        angle *= np.float32(2 * np.pi)
        along = np.sqrt(radius) * np.cos(angle, out=angle)
        # |signal + radius·e^(i·angle)|² = (signal + 2·radius·cos)·signal + radius²
        along *= 2
        along += signal
        signal *= along
        signal += radius
        return np.sqrt(np.maximum(signal, 0, out=signal), out=signal)  # rounding can give less than 0


class BlurOptions(ScannerOptions):
    sigma: float = Field(default=1.5, ge=0, le=20, description="largest standard deviation of the Gaussian, pixels")


class Blur(Scanner):
    """A Gaussian blur, of another width along each axis, as SynthSeg (Billot et al. 2023) has it."""

    name = "blur"
    options = BlurOptions

    def change(self, signal: Image, rng: np.random.Generator, options: BlurOptions) -> Image:
        sigmas = rng.uniform(0, options.sigma, 2)
        blurred: Image = ndimage.gaussian_filter(signal, sigmas, mode="nearest", truncate=3)
        return blurred
