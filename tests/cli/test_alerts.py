"""``gemini-proxy alerts test``, and what is wrong with ``[[alerts]]``."""

import asyncio
import base64
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main
from gemini_proxy.config import ConfigError, load_config
from tests.support.webhook import webhook_double

ALERT = '[[alerts]]\nname = "a"\non = ["refusals"]\n'
SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()


def configured(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text)
    return file


def run(file: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(file), "alerts", "test", *words])


async def test_a_sample_is_posted_to_each(tmp_path: Path) -> None:
    async with webhook_double() as good, webhook_double() as bad:
        bad.status = 404
        file = configured(
            tmp_path,
            f'{ALERT}url = "{good.url}"\nformat = "slack"\nsigning_secret = "{SECRET}"\n'
            f'[[alerts]]\nname = "b"\non = ["budget_spent"]\nurl = "{bad.url}"\n',
        )
        result = await asyncio.to_thread(run, file)
        assert (result.exit_code, result.output.splitlines()) == (1, ["a: accepted", "b: failed: unexpected_answer"])
        assert "webhook-signature" in good.received[0][0]
        assert (await asyncio.to_thread(run, file, "a")).exit_code == 0
        assert "there is no alert c" in (await asyncio.to_thread(run, file, "c")).output


def test_without_alerts_there_is_nothing_to_send(tmp_path: Path) -> None:
    assert "the configuration has no [[alerts]]" in run(configured(tmp_path, "")).output
    assert "no URL here for a" in run(configured(tmp_path, ALERT)).output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('url = "http://hooks.example/xoxb"', "alerts.0.url: ***: expected https"),
        ('url = "https://u:xoxb@hooks.example/"', "alerts.0.url: ***: expected a URL without user name"),
        ('url = "https://hooks.example/xoxb#f"', "alerts.0.url: ***: expected a URL such as"),
        ('signing_secret = "xoxb"', 'alerts.0.signing_secret: ***: expected "whsec_"'),
        ('format = "xml"', "alerts.0.format: 'xml': expected 'json' or 'slack'"),
        ("threshold = 0", "alerts.0.threshold: 0: expected greater than"),
        ('chanel = "x"', "alerts.0.chanel: unknown key (known are"),
        (f'{ALERT}[[alerts]]\nname = "b"\non = ["refuse"]', "alerts.2.on.0: 'refuse': expected 'approval_waiting'"),
        (ALERT, "alerts: a list: expected at most 20 alerts, each with a unique name"),
    ],
)
def test_faults_are_named_and_secrets_are_not(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(configured(tmp_path, f"{ALERT}{text}\n"))
    assert expected in str(raised.value)
    assert "xoxb" not in str(raised.value)


def test_urls_and_secrets_are_credentials_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "alert-a-url").write_text("https://hooks.example/xoxb?sig=1\n")
    (tmp_path / "alert-a-secret").write_text(SECRET)
    [alert] = load_config(configured(tmp_path, ALERT)).alerts
    assert alert.url is not None and alert.url.get_secret_value() == "https://hooks.example/xoxb?sig=1"
    assert alert.signing_secret is not None and "xoxb" not in repr(alert)
    (tmp_path / "alert-a-url").write_text("http://127.0.0.1:8005/xoxb")
    with pytest.raises(ConfigError, match=r"alerts.a.url: it is this server itself"):
        load_config(configured(tmp_path, ALERT))
