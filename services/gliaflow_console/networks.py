"""The networks of the settings' bundle in this process, for feature maps and synthetic features.

They answer no scan: the stages do. With a broker, the stages may serve another bundle, so each answer's bundle is
compared with this one.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from gliaflow.scans import Input
from gliaflow_extractor.extractor import UNetSession
from gliaflow_generator.synthesis import Synthesizer
from gliaflow_plugins.contracts import PluginError
from gliaflow_preprocessor.sequences import missing_beside, prepare_beside
from gliaflow_preprocessor.slices import UnusableScan, prepare
from gliaflow_preprocessor.steps import Steps
from gliaflow_proto import Geometry
from gliaflow_runtime.bundle.load import Bundle, load_bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from numpy.typing import NDArray

from gliaflow_console.store import ScanStore
from gliaflow_console.stored_scan import StoredScan
from gliaflow_console.turn import Turn
from gliaflow_console.view import ALONE, WITH_STAGES, read_image, read_sequence

RETRY_S = 60.0  # after a bundle was not loaded: a store that is away answers slowly
KEPT_BYTES = 2**26  # of the slices of the last scan, which are kept for its next maps


@dataclass(frozen=True)
class ScanSlices:
    """``image`` float16 [n, C, rows, columns] has the slices of a scan as the preprocessor sends them.

    C is the number of the bundle's sequences, of which the FLAIR is the first.
    """

    image: NDArray[np.float16]
    geometry: Geometry


class Networks:
    """The bundle of the settings, and its networks, each loaded when first used.

    What computes is for one caller at a time: handlers call it through ``turn``.
    """

    def __init__(self, settings: Settings) -> None:
        self.turn = Turn()
        self._settings = settings
        self.with_stages = settings.broker.startswith("memory:")
        self.served = settings.generator
        self.bounds = WITH_STAGES if self.with_stages else ALONE
        self._bundle: Bundle | None = None
        self._failure: str | None = None
        self._failed_at = 0.0
        self._lock = threading.Lock()
        self._last: tuple[str, ScanSlices] | None = None
        self.synthesizer = lru_cache(maxsize=2)(self._synthesizer)  # the page compares two
        self._unet = lru_cache(maxsize=2)(self._load_unet)
        self._steps = lru_cache(maxsize=1)(self._load_steps)

    @property
    def bundle(self) -> Bundle:
        """The bundle of the settings. Raises BundleError: it cannot be loaded."""
        with self._lock:
            if self._bundle is not None:
                return self._bundle
            if self._failure is not None and time.monotonic() - self._failed_at < RETRY_S:
                raise BundleError(self._failure)
            s = self._settings
            try:
                self._bundle = load_bundle(s.bundle, s.tap, s.bundle_sha256, s.state, s.bundles)
            except BundleError as error:
                self._failure, self._failed_at = str(error), time.monotonic()
                raise
            return self._bundle

    @property
    def taps(self) -> list[str]:
        """The names of the bundle's taps; none if there is no bundle."""
        try:
            return list(self.bundle.manifest.taps)
        except UsageError:
            return []

    @property
    def tap(self) -> str:
        """The tap where the bundle's classifier reads its features; empty if there is no bundle."""
        try:
            return self.bundle.tap
        except UsageError:
            return ""

    def maps_problem(self, scan: StoredScan, has_image: bool) -> str:
        """Why the feature maps of a scan cannot be shown; empty if they can."""
        if scan.bundle is None:
            return "a scan has feature maps once it is answered, and none if it failed"
        try:
            bundle = self.bundle.id
        except UsageError as error:
            return f"the console cannot load its bundle: {error}"
        if scan.bundle != bundle:
            return (
                f"the scan was answered by {scan.bundle}, and this console has {bundle}: start the console with the "
                "bundle of the stages (--bundle), and send the scan again"
            )
        if not has_image:
            return "the console has no image of this scan: send it through this page"
        if scan.grid is not None and (voxels := math.prod(scan.grid.shape)) > self.bounds.voxels:
            return (
                f"{voxels} voxels are over this console's limit of {self.bounds.voxels}: use gliaflow.extract in Python"
            )
        return ""

    def slices(self, store: ScanStore, scan: StoredScan) -> ScanSlices:
        """The slices of a scan, of all sequences that the bundle reads.

        Raises
        ------
        UsageError: ``maps_problem``, or the scan cannot be read.
        """
        if self._last and self._last[0] == scan.id:
            return self._last[1]
        self._last = None
        item = store.item(scan.id)
        if problem := self.maps_problem(scan, item is not None):
            raise UsageError(f"no feature maps: {problem}")
        assert item is not None, "maps_problem checks it"
        try:
            slices = self._cut(item)
        except (PluginError, UnusableScan) as error:
            raise UsageError(f"no feature maps: {error}") from None
        if slices.image.nbytes <= KEPT_BYTES:
            self._last = scan.id, slices
        return slices

    def _cut(self, item: Input) -> ScanSlices:
        spec, steps = self.bundle.manifest.input, self._steps()
        scan = read_image(item, self.bounds)
        flair, placed = prepare(steps(scan.volume, scan.affine), scan.affine, spec), scan.is_placed
        del scan  # one volume is in memory at a time
        image = np.empty((len(flair.image), len(spec.channels), *spec.size), np.float16)
        image[:, 0] = flair.image
        for number, name in enumerate(spec.channels[1:], 1):
            if name in item.sequences:
                scan = read_sequence(item, name, self.bounds)
                volume, both = steps(scan.volume, scan.affine), placed and scan.is_placed
                image[:, number], _ = prepare_beside(volume, scan.affine, flair, spec, placed=both)
                del scan, volume
            elif name in spec.optional:
                image[:, number] = missing_beside(flair, spec)
            else:
                raise UnusableScan(f"the networks read {name} too, and the console has none of this scan")
        return ScanSlices(image, flair.geometry)

    def features(
        self, slices: ScanSlices, numbers: NDArray[np.intp], tap: str, *, cropped: bool
    ) -> NDArray[np.float16]:
        """Features [n, C, H, W] of the slices with these indices, as the extractor computes them.

        Raises
        ------
        UsageError: the bundle has no such tap.
        """
        features, _ = self._unet(tap, cropped)(slices.image[numbers])
        return features

    def _load_unet(self, tap: str, cropped: bool) -> UNetSession:
        bundle, s = Bundle(self.bundle.folder, tap, self._settings.bundle_sha256), self._settings
        return UNetSession(bundle, batch=s.batch, cropped=cropped, device=s.device, threads=s.threads)

    def _load_steps(self) -> Steps:
        return Steps(self.bundle.manifest.input.steps)

    def _synthesizer(self, generator: str) -> Synthesizer:
        return Synthesizer(self.bundle, generator, device=self._settings.device, threads=self._settings.threads)
