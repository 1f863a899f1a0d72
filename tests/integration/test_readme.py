"""The commands, snippets and links of the README work as printed."""

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from processes import environment
from sample_scans import good_scan

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.rabbitmq
def test_publisher_in_plain_pika_and_msgpack(stages, tmp_path, rabbitmq_url):
    (publisher,) = (block for block in blocks("python") if "basic_publish" in block)
    stages("preprocessor", "extractor", "classifier", "generator")
    good_scan(tmp_path / "scan.nii.gz")
    code = publisher.replace("amqp://gliaflow:gliaflow@localhost/", rabbitmq_url)
    assert code != publisher
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert re.match(r"prediction (HGG|LGG) 0\.\d+ None", run.stdout)
    (tmp_path / "scan.nii.gz").write_bytes(b"no scan")
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.startswith("failure None None not a NIfTI file")


def test_from_python(tmp_path):
    (code,) = (block for block in blocks("python") if "import gliaflow\n" in block)
    (tmp_path / "SCANS").mkdir()
    good_scan(tmp_path / "scan.nii.gz")
    good_scan(tmp_path / "SCANS" / "p_flair.nii.gz")
    (tmp_path / "SCANS" / "bad_flair.nii").write_bytes(b"no scan")
    code += "print(answer.mask is None, synthetic.shape, found.features.shape)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path, "memory://"),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *answers, last = run.stdout.splitlines()
    assert re.fullmatch(
        r"bad_flair failed None None .*not a NIfTI file.*\np_flair ok (HGG|LGG) 0\.\d+ ", "\n".join(sorted(answers))
    )
    assert re.fullmatch(r"(True|False) \(100, \d+, \d+, \d+\) \(\d+, \d+, \d+, \d+\)", last)


def test_plugin():
    from gliaflow_plugins.augmentations.pipeline import AugmentationPipeline
    from gliaflow_plugins.registry import Origin, load_registry

    (code,) = (block for block in blocks("python") if "hookimpl" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
    plugin = type(sys)("dim_plugin")
    exec(code, plugin.__dict__)
    registry = load_registry()
    registry.add(plugin, Origin("mine", "mine", "1", "mine.py"))
    assert registry.problems == []
    image = np.random.default_rng(0).random((16, 16), dtype=np.float32)
    mask = image > 0.5
    darker, same = AugmentationPipeline(registry, [("dim", {"most": 0.5})])(image, mask, np.random.default_rng(1))
    assert darker.dtype == np.float32
    assert darker.max() < image.max()
    np.testing.assert_array_equal(same, mask)


def test_commands(tmp_path):
    """Run every gliaflow command of the README that ends, and needs neither a broker nor training."""
    (tmp_path / "SCANS").mkdir()
    good_scan(tmp_path / "SCANS" / "p_flair.nii.gz")
    commands = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    commands = [command for command in commands if command.startswith("gliaflow ")]
    assert len(commands) >= 5
    runnable = [command for command in commands if not re.search(r"--broker|COHORT|my-bundle|console", command)]
    assert len(runnable) >= 2
    for command in runnable:
        arguments = [sys.executable, "-m", "gliaflow_cli", *command.split()[1:]]
        done = subprocess.run(
            arguments, cwd=tmp_path, env=environment(tmp_path, "memory://"), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, command + done.stderr
    assert (tmp_path / "out" / "predictions.csv").exists()
    assert (tmp_path / "lgg.safetensors").exists()


def test_the_console_prints_an_address_that_opens(tmp_path):
    """The README's ``gliaflow console``, on a free port."""
    assert "gliaflow console" in README
    arguments = [sys.executable, "-m", "gliaflow_cli", "console", "--port", "0"]
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=environment(tmp_path, "memory://"), stdout=subprocess.PIPE, text=True
    ) as console:
        try:
            address = console.stdout.readline().split()[-1]
            request = urllib.request.Request(address, headers={"Sec-Fetch-Site": "none"})
            cookies = urllib.request.HTTPCookieProcessor()
            with urllib.request.build_opener(cookies).open(request, timeout=60) as page:
                assert "<title>gliaflow console</title>" in page.read().decode()
        finally:
            console.terminate()
    assert console.returncode == 0


def test_make_targets_and_links_in_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text()
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert f"\n{target}:" in makefile, f"{document}: make {target}"
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (document.parent / link).exists(), f"{document}: {link}"


def test_settings_named_in_the_operations_and_security_pages_exist():
    from gliaflow_runtime.settings import Settings

    overrides = (ROOT / "deploy").glob("compose.*.yml")
    compose = "".join(path.read_text() for path in (ROOT / "docker-compose.yml", *overrides))
    known = {f"GLIAFLOW_{name.upper()}" for name in Settings.model_fields} | {"GLIAFLOW_CONFIG"}
    text = "".join((ROOT / "docs" / page).read_text() for page in ("operations.md", "security.md"))
    for name in re.findall(r"GLIAFLOW_[A-Z0-9_]+[A-Z0-9]", text):
        assert name in known or f"${{{name}" in compose, name
