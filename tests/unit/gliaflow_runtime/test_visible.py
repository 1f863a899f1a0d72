"""Texts of files and messages cannot command the terminal, forge a line, or hide and reverse characters."""

import pytest
import structlog
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nok\r\tb\x00\x7f", r"a\nok\r\tb\x00\x7f"),
        ("a\x9b2J", r"a\x9b2J"),
        ("HGG\u202eGGL\u2066\u200b\u2060\ufeff", r"HGG\u202eGGL\u2066\u200b\u2060\ufeff"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("sur\udcffrogate", r"sur\udcffrogate"),
        ("tag\U000e0041", r"tag\U000e0041"),
    ],
)
def test_characters_that_act_on_the_terminal_are_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def test_every_character_of_these_kinds_is_escaped() -> None:
    acting = [*range(0x20), *range(0x7F, 0xA0), *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065)]
    acting += [*range(0x2066, 0x2070), 0xFEFF, 0x2028, 0x2029, 0x061C, *range(0xD800, 0xE000)]
    assert [number for number in acting if visible(chr(number)).startswith("\\") is False] == []


@pytest.mark.parametrize("text", ["Müller", "患者 山田\u3000太郎", "e\u0301", "😀 ❤\ufe0f", "שלום", r"C:\new"])
def test_other_characters_stay(text: str) -> None:
    assert visible(text) == text


def test_texts_in_a_text_log_are_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    structlog.get_logger().info("dead letter", reason="no head\x9b2J\n12 of 12 scans answered\u202e")
    assert capfd.readouterr().err.count("\n") == 1
    structlog.get_logger().info("no head\x9b2J\n12 of 12", scan="P1\u202e")
    shown = capfd.readouterr().err
    assert shown.count("\n") == 1
    assert r"no head\x9b2J\n12 of 12" in shown
    assert r"P1\u202e" in shown
