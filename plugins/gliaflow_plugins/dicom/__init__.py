"""DICOM series of MR images: which files belong together, which series is FLAIR, and its voxels as NIfTI."""
