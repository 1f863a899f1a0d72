"""nibabel without pydicom. All of gliaflow imports nibabel from here.

A nibabel that finds pydicom parses the DICOM data that the sender may put into a NIfTI header. It also loads pydicom
and its decoders into each process, which takes 0.4 s and 40 MB.
"""

from __future__ import annotations

import sys

_pydicom = sys.modules.get("pydicom")
sys.modules["pydicom"] = None  # type: ignore[assignment]  # so that its import fails
try:
    import nibabel as nib
    from nibabel.affines import voxel_sizes
    from nibabel.quaternions import quat2mat
    from nibabel.spatialimages import HeaderDataError
finally:
    del sys.modules["pydicom"]
    if _pydicom is not None:
        sys.modules["pydicom"] = _pydicom

__all__ = ["HeaderDataError", "nib", "quat2mat", "voxel_sizes"]
