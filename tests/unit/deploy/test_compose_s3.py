"""deploy/compose.s3-*.yml: only the service that reads from the store has its key and a network with a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
STAGES = {"preprocessor", "extractor", "classifier", "generator", "trainer"}


def services(file: str) -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["services"])


@pytest.mark.parametrize(("purpose", "reader"), [("bundle", "bundle"), ("scans", "preprocessor")])
def test_one_service_has_the_key_and_reaches_the_store(purpose: str, reader: str) -> None:
    changed = services(f"deploy/compose.s3-{purpose}.yml")
    key = f"${{GLIAFLOW_SECRETS:-./secrets}}/s3-{purpose}.env"
    assert {name: one["env_file"] for name, one in changed.items() if "env_file" in one} == {reader: [key]}
    assert [name for name, one in changed.items() if "default" in one.get("networks", [])] == [reader]
    assert not [variable for one in changed.values() for variable in one.get("environment", ()) if "AWS" in variable]


def test_stages_without_s3_reach_only_the_internal_network() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["networks"]["stages"]["internal"] is True
    for name in STAGES:
        assert services("docker-compose.yml")[name]["networks"] == ["stages"], name


def test_stages_wait_for_the_bundle_and_cannot_change_it() -> None:
    changed = services("deploy/compose.s3-bundle.yml")
    assert {name for name, one in changed.items() if "bundle" in one.get("depends_on", {})} == STAGES
    assert changed["bundle"]["volumes"] == ["${GLIAFLOW_BUNDLES:-./bundles}:/bundles"]
    for name in STAGES - {"trainer"}:
        assert "${GLIAFLOW_BUNDLES:-./bundles}:/bundles:ro" in services("docker-compose.yml")[name]["volumes"]


def test_the_service_that_fetches_the_bundle_is_locked_down() -> None:
    one = services("deploy/compose.s3-bundle.yml")["bundle"]
    assert one["cap_drop"] == ["ALL"]
    assert one["cap_add"] == ["SETUID", "SETGID"]
    assert one["read_only"] is True
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit"} <= set(one)
