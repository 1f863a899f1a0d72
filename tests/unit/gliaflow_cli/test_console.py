"""``gliaflow console`` on a machine that lacks something."""

from __future__ import annotations

import sys

import pytest
from gliaflow_cli.main import main


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("sys.argv", ["gliaflow", "console", "--port", "0"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "pip install 'gliaflow[serve,console]'" in capsys.readouterr().err
