"""Names that have moved since an earlier version, and the advice for a plugin that imports the old name."""

from __future__ import annotations

import re
from types import ModuleType

PACKAGE = "gliaflow_plugins"
UPGRADING = "see docs/upgrading.md, Plugins"

MODULES = {
    "base": "contracts",
    "readers": "contracts",
    "pipeline": "augmentations.pipeline",
    "clinical": "cohorts.clinical_tables",
    "layouts": "cohorts.layouts",
    "case_folders": "cohorts.case_folders",
    "plain": "generators.baselines",
    "acgan": "generators.acgan",
    "acgan_image": "generators.acgan_image",
    "adcgan": "generators.adcgan",
    "infogan": "generators.infogan",
    "reacgan": "generators.reacgan",
    "sngan_projection": "generators.sngan_projection",
    "wgan_gp": "generators.wgan_gp",
    "acgan_image_networks": "networks.image_gan",
    "cnn": "networks.cnn",
    "export": "networks.export",
    "gan_networks": "networks.gan_networks",
    "gan_training": "networks.gan_training",
    "plain_networks": "networks.principal_components",
    "pooled": "networks.tumour_statistics",
    "pooled_classifier": "networks.pooled_classifier",
}
"""Old module of ``gliaflow_plugins`` → today's."""

NAMES = {
    **dict.fromkeys(("FeatureSource", "SliceSource", "Fitted", "GeneratorVariant", "Progress"), "contracts"),
    **dict.fromkeys(("FittedClassifier", "ClassifierVariant", "Augmentation", "Step", "Image", "Mask"), "contracts"),
    **dict.fromkeys(("Case", "Cohort", "Reader", "Volume"), "contracts"),
    **dict.fromkeys(("ArrayFeatures", "Joined", "patients_of", "slices_of", "channel_scale"), "features"),
    **dict.fromkeys(("hinge", "cross_entropy", "at", "Seen"), "gan_losses"),
    **dict.fromkeys(("NiftiFile", "TiffStack"), "cohorts.volumes"),
    "DicomSeries": "dicom.series",
    **dict.fromkeys(("Geometric", "Affine", "Displacement", "resample", "shape_of"), "augmentations.geometry"),
    **dict.fromkeys(("CoordinateMap", "Points", "Shape"), "augmentations.geometry"),
    **dict.fromkeys(("Elastic", "Rotation", "Shift", "Shear", "Zoom", "ElasticOptions"), "augmentations.shipped"),
    **dict.fromkeys(("RotationOptions", "ShiftOptions", "ShearOptions", "ZoomOptions"), "augmentations.shipped"),
}
"""A name that has left its module → the module that has it today."""


def advice(error: BaseException) -> str:
    """Where today's name is, if ``error`` comes from an import or use of a name that has moved; otherwise empty."""
    name = str(getattr(error, "name", None) or "")
    if isinstance(error, ModuleNotFoundError):
        old = name.removeprefix(f"{PACKAGE}.")
        return f"`{name}` is now `{PACKAGE}.{MODULES[old]}`; {UPGRADING}" if old != name and old in MODULES else ""
    if isinstance(error, ImportError) and name.startswith(PACKAGE):
        match = re.match(r"cannot import name '(\w+)'", str(error))
        name = match[1] if match else ""
    elif not (isinstance(error, AttributeError) and _is_ours(error.obj)):
        return ""
    return f"`{name}` is now in `{PACKAGE}.{NAMES[name]}`; {UPGRADING}" if name in NAMES else ""


def _is_ours(module: object) -> bool:
    return isinstance(module, ModuleType) and module.__name__.startswith(PACKAGE)
