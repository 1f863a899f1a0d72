"""docker-compose.yml: the containers find a bundle of GLIAFLOW_BUNDLES by its name, as the file's header says."""

from __future__ import annotations

from pathlib import Path

import yaml

COMPOSE = Path(__file__).parents[3] / "docker-compose.yml"


def test_a_service_that_loads_a_bundle_sees_the_folder_of_bundles() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    assert "# bundle in it, or /bundles/NAME" in text
    services = yaml.safe_load(text)["services"]
    for name in ("preprocessor", "extractor", "classifier", "generator", "trainer", "operator"):
        service = services[name]
        assert service["environment"]["GLIAFLOW_BUNDLE"] == "${GLIAFLOW_BUNDLE:-}"
        assert service["environment"]["GLIAFLOW_BUNDLES"] == "/bundles"
        assert any(volume.startswith("${GLIAFLOW_BUNDLES:-./bundles}:/bundles") for volume in service["volumes"]), name


def test_no_client_can_name_a_file_of_the_preprocessor() -> None:
    """Another client's scans are in the inbox: the preprocessor does not see it, and no root allows a URI."""
    preprocessor = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["preprocessor"]
    assert "GLIAFLOW_ROOTS" not in preprocessor["environment"]
    mounts = {volume.rsplit(":", 2)[1] for volume in preprocessor["volumes"]}
    assert mounts == {"/run/secrets", "/bundles", "/plugins.d"}
