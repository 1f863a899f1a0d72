"""docker-compose.yml: containers find a bundle of GLIAFLOW_BUNDLES by its name, and see only files that they need."""

from __future__ import annotations

from pathlib import Path

import yaml
from gliaflow_runtime.settings import Settings

COMPOSE = Path(__file__).parents[3] / "docker-compose.yml"


def test_a_service_that_loads_a_bundle_sees_the_folder_of_bundles() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    assert "# bundle in it, or /bundles/NAME" in text
    services = yaml.safe_load(text)["services"]
    for name in ("preprocessor", "extractor", "classifier", "generator", "trainer", "console", "operator"):
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


def test_the_dicom_node_runs_only_with_its_profile_and_has_one_writable_folder() -> None:
    """Patient data is in its spool only. Its port is closed to other machines until an operator opens it."""
    node = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["dicom"]
    assert node["profiles"] == ["dicom"]
    assert node["ports"] == ["${GLIAFLOW_DICOM_ADDRESS:-127.0.0.1}:${GLIAFLOW_DICOM_PORT:-11112}:11112"]
    assert [volume for volume in node["volumes"] if not volume.endswith(":ro")] == ["dicom:/spool"]
    assert node["environment"]["GLIAFLOW_DICOM_SPOOL"] == "/spool"
    assert node["networks"] == ["stages", "default"], "it reaches the PACS"
    assert (node["read_only"], node["cap_drop"]) == (True, ["ALL"])


def test_the_dicom_node_takes_each_of_its_settings_from_the_environment() -> None:
    """Without a value in the file, Compose passes a variable on only if it is set. Three are those of the container."""
    environment = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["dicom"]["environment"]
    settings = {f"GLIAFLOW_{name.upper()}" for name in Settings.model_fields if name.startswith("dicom_")}
    container = {"GLIAFLOW_DICOM_SPOOL", "GLIAFLOW_DICOM_HOST", "GLIAFLOW_DICOM_PORT"}
    assert {name for name, value in environment.items() if value is None} == settings - container


def test_the_console_is_on_this_machine_only_and_has_one_writable_folder() -> None:
    """Its token and the password of its broker user are in its own folder of secrets, its scans in its own volume."""
    console = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["console"]
    assert "profiles" not in console, "it starts with the stages"
    assert console["image"] == "gliaflow:${GLIAFLOW_VERSION:-latest}"
    assert console["ports"] == ["127.0.0.1:${GLIAFLOW_CONSOLE_PORT:-8765}:8765"]
    assert [volume for volume in console["volumes"] if not volume.endswith(":ro")] == ["console:/console"]
    environment = console["environment"]
    assert environment["GLIAFLOW_CONSOLE_FOLDER"] == "/console"
    assert environment["GLIAFLOW_CONSOLE_TOKEN_FILE"] == "/run/secrets/token"
    assert (console["read_only"], console["cap_drop"]) == (True, ["ALL"])
    settings = {f"GLIAFLOW_{name.upper()}" for name in Settings.model_fields if name.startswith("console_")}
    assert {name for name in environment if name.startswith("GLIAFLOW_CONSOLE")} == settings - {
        "GLIAFLOW_CONSOLE_PORT",  # of the host: the published one
        "GLIAFLOW_CONSOLE_TOKEN",  # a file has it
    }


def test_a_dask_cluster_reaches_nobody_and_writes_only_reports() -> None:
    """Whoever reaches a scheduler can run code on it: its network has no way in or out, and no port is published."""
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    assert compose["networks"]["dask"] == {"internal": True}
    for name in ("dask-scheduler", "dask-worker", "evaluate"):
        service = compose["services"][name]
        assert service["networks"] == ["dask"], name
        assert "ports" not in service, name
        writable = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
        assert writable == ["${GLIAFLOW_REPORTS:-./reports}:/reports"], name
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    trainer, scheduler = (compose["services"][name]["build"] for name in ("trainer", "dask-scheduler"))
    assert trainer == scheduler, "one image"
    assert "dask" in trainer["args"]["EXTRA"].split(",")


def test_no_container_that_holds_scans_writes_a_core_dump() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    with_scans = ("preprocessor", "extractor", "classifier", "generator", "trainer", "inbox", "console", "dicom")
    for name in (*with_scans, "dask-worker", "evaluate"):
        assert services[name]["ulimits"] == {"core": 0}, name
