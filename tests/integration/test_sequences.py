"""A bundle of several sequences behind RabbitMQ: the client sends those that its setting names, by value."""

from __future__ import annotations

from pathlib import Path

import gliaflow
import numpy as np
import pytest
from gliaflow_runner.running import RunningStages
from gliaflow_runner.services import PIPELINE
from gliaflow_runtime.settings import Settings
from sample_sequences import lesion, save, several_channels, without_lesion

pytestmark = pytest.mark.rabbitmq


def test_stages_on_a_broker_get_the_sequences_that_the_setting_names(
    rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gliaflow.submission.BY_VALUE_BYTES", 2**14)  # so that the second file needs an upload
    bundle = several_channels(tmp_path / "bundle", ["flair", "t1ce"], sees="t1ce")
    head = lesion(folder=tmp_path)
    save(tmp_path / "in/P/P_flair.nii.gz", without_lesion(head))
    save(tmp_path / "in/P/P_t1ce.nii.gz", head)
    settings = Settings(broker=rabbitmq_url, bundle=bundle, threads=1)
    with RunningStages(PIPELINE, settings):
        with gliaflow.open(rabbitmq_url) as flow:
            failed = flow.submit(tmp_path / "in")
        with gliaflow.open(rabbitmq_url, sequences=["t1ce"]) as flow:
            answer = flow.submit(tmp_path / "in")
    assert "--sequences t1ce" in failed.reason
    assert answer.status == "ok"
    assert np.asarray(answer.mask.dataobj).any()
