"""Artefacts of the acquisition: what the scanner measures is k-space, the image's Fourier transform.

Lines of k-space are measured one after the other along the phase-encoding axis, here rows or columns at random. An
artefact that changes whole lines needs a transform along that axis only. The image is the magnitude.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
from pydantic import Field
from scipy import fft

from gliaflow_plugins.augmentations.geometry import Affine, resample, shape_of
from gliaflow_plugins.augmentations.scanner import Scanner, ScannerOptions
from gliaflow_plugins.contracts import Image

STILL = 0.1  # share of k-space, about its centre, without a movement: it decides where the head is, as the mask says


class _PhaseEncoded(Scanner):
    """An artefact along the phase-encoding axis."""

    @abstractmethod
    def change_lines(self, signal: Image, rng: np.random.Generator, options: Any) -> Image:
        """The changed signal; the phase-encoding axis is the first."""

    def change(self, signal: Image, rng: np.random.Generator, options: Any) -> Image:
        turned = rng.random() < 0.5
        changed = self.change_lines(signal.T if turned else signal, rng, options)
        return changed.T if turned else changed


class LowResolutionOptions(ScannerOptions):
    factor: float = Field(default=4, ge=1, le=8, description="largest number of pixels that one measured pixel spans")


class LowResolution(_PhaseEncoded):
    """Fewer phase-encoding lines: the outer ones were not measured, and the scanner filled them with zeros.

    This is downsampling along one axis and back. Edges are blurred and, since k-space ends sharply, ring (Gibbs): see
    Bernstein, Fain and Riederer (2001).
    """

    name = "low-resolution"
    options = LowResolutionOptions

    def change_lines(self, signal: Image, rng: np.random.Generator, options: LowResolutionOptions) -> Image:
        lines = fft.rfft(signal, axis=0)
        lines[math.ceil(len(lines) / rng.uniform(1, options.factor)) :] = 0
        changed: Image = fft.irfft(lines, len(signal), axis=0, overwrite_x=True)
        return np.abs(changed, out=changed)


class MotionOptions(ScannerOptions):
    movements: int = Field(default=3, ge=1, le=10, description="largest number of movements")
    degrees: float = Field(default=5, ge=0, le=45, description="largest rotation in one of them, in either direction")
    shift: float = Field(default=0.02, ge=0, le=0.5, description="largest shift in one of them, as a share of the side")


class Motion(_PhaseEncoded):
    """The patient moves suddenly: k-space is put together of lines of the head in several positions (Shaw et al. 2019).

    The centre of k-space, which has most of the signal, is of the head in its place, so that the mask fits.
    """

    name = "motion"
    options = MotionOptions

    def change_lines(self, signal: Image, rng: np.random.Generator, options: MotionOptions) -> Image:
        shape = shape_of(signal)
        lines, frequency = fft.fft(signal, axis=0), 2 * fft.fftfreq(shape[0])  # −1 … 1, in order of time
        nothing = np.zeros(shape, np.uint8)
        # The lines from there to the end, or to the beginning, are of another position.
        for start in np.sort(rng.uniform(STILL, 1, rng.integers(1, options.movements, endpoint=True))):
            angle = np.deg2rad(rng.uniform(-options.degrees, options.degrees))
            shift = rng.uniform(-options.shift, options.shift, 2) * shape
            turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            moved, _ = resample(signal, nothing, [Affine.about_centre(shape, turn, shift.tolist())])
            outside = rng.choice([-1, 1]) * frequency > start
            lines[outside] = fft.fft(moved, axis=0)[outside]
        changed: Image = np.abs(fft.ifft(lines, axis=0, overwrite_x=True))
        return changed


class GhostingOptions(ScannerOptions):
    shift: float = Field(
        default=0.01, ge=0, le=0.1, description="largest amplitude of the movement, as a share of the side"
    )
    distance: float = Field(
        default=0.5, gt=0.02, le=0.5, description="largest distance between ghosts, as a share of the side"
    )


class Ghosting(_PhaseEncoded):
    """Something moves to and fro while lines are measured: copies appear at equal distances (Wood and Henkelman 1985).

    The movement along the phase-encoding axis is a sine of time: it turns the phase of each line in proportion to
    the line's frequency. Edges have ghosts, flat areas do not.
    """

    name = "ghosting"
    options = GhostingOptions

    def change_lines(self, signal: Image, rng: np.random.Generator, options: GhostingOptions) -> Image:
        line = fft.fftfreq(len(signal)) * len(signal)  # its number is its time
        distance = rng.uniform(0.02, options.distance)
        position = rng.uniform(0, options.shift) * np.sin(2 * np.pi * (distance * line + rng.random()))
        lines = fft.fft(signal, axis=0)
        lines *= np.exp(-2j * np.pi * line * position)[:, None].astype(np.complex64)
        changed: Image = np.abs(fft.ifft(lines, axis=0, overwrite_x=True))
        return changed


class SpikesOptions(ScannerOptions):
    number: int = Field(default=2, ge=1, le=20, description="largest number of spikes")
    strength: float = Field(
        default=0.3, ge=0, le=5, description="largest height of the stripes of one, as a share of the head's level"
    )


class Spikes(Scanner):
    """A discharge during a few samples of k-space: stripes across the whole image (herringbone artefact).

    A sample of k-space is a plane wave in the image, so no transform is needed. Stripes are 2 to 40 pixels apart. See
    Heiland (2008), "From A as in aliasing to Z as in zipper", for the artefact.
    """

    name = "spikes"
    options = SpikesOptions

    def change(self, signal: Image, rng: np.random.Generator, options: SpikesOptions) -> Image:
        total = signal.astype(np.complex64)
        for _ in range(rng.integers(1, options.number, endpoint=True)):
            turns, direction = 1 / rng.uniform(2, 40), rng.uniform(0, 2 * np.pi)  # a pixel; an angle
            along = [turns * np.cos(direction), turns * np.sin(direction)]
            rows, columns = (
                np.exp(2j * np.pi * step * np.arange(side)) for step, side in zip(along, signal.shape, strict=True)
            )
            rows *= rng.uniform(0, options.strength) * np.exp(2j * np.pi * rng.random())
            total += np.outer(rows.astype(np.complex64), columns.astype(np.complex64))
        changed: Image = np.abs(total)
        return changed
