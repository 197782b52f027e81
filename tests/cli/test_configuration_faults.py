"""What is wrong with a configuration, in words and by exit code, from ``serve`` and ``check-config`` alike."""

import base64
import contextlib
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main
from tests.cli.process import write_config

COMMANDS = pytest.mark.parametrize("command", ["serve", "check-config"])


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GEMINI_PROXY_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """A fault that is not found would serve for ever."""

    def give_up(*_: object) -> None:
        raise TimeoutError("it serves")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


Sections = Mapping[str, Mapping[str, object]]


def configured(folder: Path, sections: Sections) -> Path:
    """A configuration file with ``sections``, for a free port where they do not say another address.

    Some faults are found after the server has begun to listen, and the usual port may be taken.
    """
    return write_config(folder, "config.toml", **{"server": {"listen": ["127.0.0.1:0"]}, **sections})


def invoke(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), *arguments])


@COMMANDS
@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("server", {"listen": ["nonsense"]}, ["server.listen", "nonsense", '"host:port" or "unix:/path"']),
        ("server", {"listen": ["127.0.0.1:99999"]}, ["server.listen", "99999", "host:port"]),
        ("server", {"listen": "127.0.0.1:1"}, ["server.listen", "'127.0.0.1:1'", "expected a list"]),
        ("server", {"max_exchanges": True}, ["server.max_exchanges", "True", "expected a number"]),
        ("explorer", {"enabled": "perhaps"}, ["explorer.enabled", "'perhaps'", "true or false"]),
        ("explorer", {"push": "https://x.example"}, ["explorer.push", "a text", "expected a table"]),
        ("guardrails", {"parameters": ["a"]}, ["guardrails.parameters", "a list", "expected a table"]),
        ("guardrails", {"log_policies": ["gone.gr"]}, ["guardrails.log_policies: no file", "gone.gr"]),
        ("server", {"loop": "trio"}, ["server.loop", "'trio'", "'asyncio' or 'uvloop'"]),
        ("server", {"lisen": ["127.0.0.1:1"]}, ["server.lisen", "unknown key", 'did you mean "listen"']),
        (
            "prices",
            {'"gemini-*".input': 1, '"gemini-*".outptu': 2},
            ["prices.gemini-*.outptu", 'did you mean "output"'],
        ),
        (
            "prices",
            {'"gemini-*".input': -1, '"gemini-*".output': 2},
            ["prices.gemini-*.input", "-1", "greater than or equal to 0"],
        ),
        ("server", {"max_request_bytes": "much"}, ["server.max_request_bytes", "'much'", "integer"]),
        ("upstream", {"base_url": "http://example.com"}, ["upstream.base_url", "http://example.com", "https"]),
        ("upstream", {"read_timeout": -1}, ["upstream.read_timeout", "-1", "greater than 0"]),
        ("guardrails", {"stream_check": "sometimes"}, ["guardrails.stream_check", "'sometimes'", "'hold'"]),
        ("guardrails", {"policies": ["gone/*.gr"]}, ["guardrails.policies", "gone/*.gr", "no file"]),
        ("traces", {"database": "postgresql+asyncpg://u@h:port/d"}, ["traces.database", "not one"]),
        ("traces", {"database": "sqlite:///:memory:"}, ["traces.database", "sqlite:///FILE"]),
        ("traces", {"read_database": "sqlite:///x.db"}, ["traces.read_database", "postgresql+asyncpg://"]),
        ("traces", {"read_database": "postgresql+asyncpg://u@h/d"}, ["traces.read_database", "none with SQLite"]),
        ("traces", {"max_size": "9 MB"}, ["traces.max_size", '0, or at least "10 MB"']),
        ("traces", {"max_size": "plenty"}, ["traces.max_size", "plenty"]),
        ("traces", {"database": "mysql://x"}, ["traces.database", "'mysql://x'", "sqlite:///FILE"]),
        (
            "traces",
            {"required": True, "durability": "deferred"},
            ["traces.durability", "'deferred'", '"commit"', "traces.required"],
        ),
        ("nonsense", {"a": 1}, ["nonsense", "unknown"]),
    ],
)
def test_a_fault_names_key_value_and_what_was_expected(
    tmp_path: Path, command: str, section: str, values: Mapping[str, object], expected: list[str]
) -> None:
    result = invoke(write_config(tmp_path, "config.toml", **{section: values}), command)
    assert result.exit_code == 78
    assert result.stdout == ""
    for words in expected:
        assert words in result.stderr


CANARY = "CANARY4711"
WITHOUT_PASSWORD = "without user name and password"
NO_KEY = "visible ASCII"


@COMMANDS
@pytest.mark.parametrize("section", ["upstream", "guardrails.remote", "explorer.push"])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("explorer.example.com", "a URL such as"),
        ("localhost:8005", "a URL such as"),
        ("", "a URL such as"),
        ("ftp://x.example", "a URL such as"),
        ("https://x.example:99999", "a URL such as"),
        ("https://x.example:port", "a URL such as"),
        ("https://x.example:0", "a URL such as"),
        ("https://[::1", "a URL such as"),
        ("https://x. example", "a URL such as"),
        ("https://x.example\n", "a URL such as"),
        ("https://x\u00e4.example", "a URL such as"),
        ("http://x.example", "https, unless"),
        (f"https://x.example/?key={CANARY}", "a URL such as"),
        ("https://x.example/?", "a URL such as"),
        ("https://x.example/#", "a URL such as"),
        (f"https://user:{CANARY}@x.example", WITHOUT_PASSWORD),
        (f"https://{CANARY}@x.example", WITHOUT_PASSWORD),
        (f"https://user:1/{CANARY}@x.example", WITHOUT_PASSWORD),
        (f"user:{CANARY}@x.example", WITHOUT_PASSWORD),
        ("AIza" + CANARY + "x" * 25, "a URL such as"),
        ("AQ." + CANARY + "x" * 25, "a URL such as"),
    ],
)
def test_what_is_no_url_of_a_service(tmp_path: Path, command: str, section: str, url: str, expected: str) -> None:
    """One line, without what in it may be secret."""
    key = "base_url" if section == "upstream" else "url"
    result = invoke(configured(tmp_path, {section: {key: url}}), command)
    assert result.exit_code == 78
    assert f": {section}.{key}: " in result.stderr and expected in result.stderr
    assert CANARY not in result.output and result.stderr.count("\n") == 1


@COMMANDS
@pytest.mark.parametrize("section", ["upstream", "guardrails.remote", "explorer.push"])
@pytest.mark.parametrize("key", ["", " ", f"{CANARY}\n", f"{CANARY} x", f"{CANARY}\u00e4", [CANARY], 4711])
def test_a_key_that_no_header_can_carry(tmp_path: Path, command: str, section: str, key: object) -> None:
    """Is found at the start, not with the first request; it is not shown."""
    result = invoke(configured(tmp_path, {section: {"api_key": key}}), command)
    assert result.exit_code == 78
    assert f": {section}.api_key: ***: expected a" in result.stderr
    assert CANARY not in result.output and "4711" not in result.output


@COMMANDS
@pytest.mark.parametrize(
    "text",
    [
        f'upstream = "{CANARY}"',
        f'upstream = ["{CANARY}"]',
        f'[explorer]\npush = [{{url = "https://x", api_key = "{CANARY}"}}]',
        f'[guardrails]\nremote = "{CANARY}"',
        f'[upstream]\napikey = "{CANARY}"',
        f"[upstream]\napi_key = {CANARY}",
        f'[server]\nlisten = [{{api_key = "{CANARY}"}}]',
        f'[refusals]\nfeedback = "AIza{CANARY}{"x" * 25}"',
        f'[refusals]\nfeedback = "AQ.{CANARY}{"x" * 25}"',
        f'[traces]\ndatabase = "postgresql://u:{CANARY}@h/d"',
        f'[traces]\ndatabase = "postgresql+asyncpg://u:{CANARY}@h:x/d"',
        f'[traces]\ndatabase = "postgresql+asyncpg://u:{CANARY}@h/d?sslmode=require"',
    ],
)
def test_a_key_in_the_wrong_place_is_not_shown(tmp_path: Path, command: str, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    result = invoke(file, command)
    assert result.exit_code == 78 and result.stderr.count("\n") == 1
    assert CANARY not in result.output


def test_numbers_without_end_are_none(tmp_path: Path) -> None:
    for value in ("inf", "nan"):
        file = tmp_path / "config.toml"
        file.write_text(f"[guardrails]\ntimeout = {value}")
        result = invoke(file, "check-config")
        assert result.exit_code == 78 and "a finite number" in result.stderr


@COMMANDS
@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:8005", "http://127.0.0.1:8005"),
        ("127.0.0.1:8005", "http://localhost:8005/"),
        ("localhost:8005", "http://127.0.0.1:8005"),
        ("[::1]:8005", "http://[::1]:8005"),
        ("0.0.0.0:8005", "http://127.0.0.1:8005"),
        ("[::]:443", "https://localhost"),
        ("proxy.example.com:443", "https://Proxy.example.com"),
    ],
)
def test_a_service_that_is_the_server_itself(tmp_path: Path, command: str, listen: str, url: str) -> None:
    """Each of its answers would ask it again, without end: it does not start."""
    common: Sections = {"server": {"listen": [listen]}, "access": {"mode": "keys"}}
    remote: Sections = {"guardrails": {"engine": "remote"}, "guardrails.remote": {"url": url, "api_key": "inv-x"}}
    push: Sections = {"explorer.push": {"url": url, "api_key": "inv-x"}}
    own: Sections = {"upstream": {"base_url": url}}
    vertex: Sections = {"upstream": {"vertex": url}}
    for sections in (own, vertex, remote, push):
        result = invoke(configured(tmp_path, {**common, **sections}), command)
        assert result.exit_code == 78 and "is this server itself" in result.stderr


def test_doors_take_the_duties_that_they_allow(tmp_path: Path) -> None:
    """What is let through unchecked is said; what cannot be is a fault."""
    result = invoke(configured(tmp_path, {"doors": {"tuning": "pass", "models": "deny"}}), "check-config")
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if line.startswith("doors.")] == [
        'doors.tuning = "pass": tuned models and tuning jobs: unchecked'
    ]
    for door, duty in (("generate", "pass"), ("legacy", "guard"), ("models", "guard"), ("doors", "deny")):
        result = invoke(configured(tmp_path, {"doors": {door: duty}}), "check-config")
        assert result.exit_code == 78 and f"doors.{door}: " in result.stderr


def test_a_service_that_is_another_on_this_machine(tmp_path: Path) -> None:
    """Two of our own servers may be each other's Explorer and Guardrails."""
    for listen, url in (("127.0.0.1:8005", "http://127.0.0.1:8006"), ("127.0.0.1:8005", "http://[::1]:8005")):
        sections: Sections = {"server": {"listen": [listen]}, "explorer.push": {"url": url, "api_key": "inv-x"}}
        assert invoke(configured(tmp_path, sections), "check-config").exit_code == 0


SERVICES: list[tuple[Sections, str, str]] = [
    ({"explorer.push": {"url": "https://x.example"}}, "explorer.push.api_key", "explorer-api-key"),
    (
        {
            "access": {"mode": "keys"},
            "guardrails": {"engine": "remote"},
            "guardrails.remote": {"url": "https://x.example"},
        },
        "guardrails.remote.api_key",
        "guardrails-api-key",
    ),
]


@pytest.mark.parametrize(("sections", "key", "credential"), SERVICES, ids=["push", "remote"])
def test_a_services_key_is_needed_to_serve_and_for_nothing_else(
    tmp_path: Path,
    sections: Sections,
    key: str,
    credential: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said where it may come from; who adds a user by hand has no part in systemd's credentials."""
    config = configured(tmp_path, sections)
    for command in ("serve", "check-config"):
        result = invoke(config, command)
        assert result.exit_code == 78
        for words in (f"{key}: needed", credential, f"GEMINI_PROXY_{key.upper().replace('.', '__')}"):
            assert words in result.stderr
    assert invoke(config, "keys", "add", "ann").exit_code == 0
    (tmp_path / credential).write_text("inv-x\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert invoke(config, "check-config").exit_code == 0


def test_keys_of_masked_values_are_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They need the key of placeholders; one a line, and what follows from them is said. A wrong one is not shown."""
    (tmp_path / "mask.gr").write_text('raise "x" if:\n    (m: Message)\n    "x" in m.content\n')
    config = write_config(tmp_path, guardrails={"mask_policies": ["mask.gr"]})
    assert (
        "guardrails.value_keys is not set: masked values are kept only for their"
        in invoke(config, "check-config").stdout
    )
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    keys = [base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2)]
    (tmp_path / "value-keys").write_text("\n".join([*keys, ""]))
    result = invoke(config, "check-config")
    assert result.exit_code == 78 and "guardrails.mask_key: needed" in result.stderr
    (tmp_path / "mask-key").write_text("placeholders")
    result = invoke(config, "check-config")
    assert (result.exit_code, "encrypted, for 30 days" in result.stdout) == (0, True)
    assert not any(key in result.output for key in keys)
    (tmp_path / "value-keys").write_text(CANARY)
    result = invoke(config, "check-config")
    assert result.exit_code == 78 and "openssl rand -base64 32" in result.stderr and CANARY not in result.output


def test_a_remote_engine_needs_a_url(tmp_path: Path) -> None:
    result = invoke(write_config(tmp_path, guardrails={"engine": "remote"}), "serve")
    assert result.exit_code == 78 and "guardrails.remote.url: needed" in result.stderr


@COMMANDS
@pytest.mark.parametrize("content", [b"", b"\n", b"CANARY4711\nCANARY4711\n", b"\xff"])
def test_a_credential_that_is_no_key(
    tmp_path: Path, command: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one is none, and is not passed over."""
    (tmp_path / "gemini-api-key").write_bytes(content)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    result = invoke(write_config(tmp_path), command)
    assert result.exit_code == 78
    assert "gemini-api-key" in result.stderr and CANARY not in result.output


@COMMANDS
@pytest.mark.parametrize("address", ["0.0.0.0:8005", "[::]:8005", "192.0.2.1:80", "example.com:80"])
def test_open_access_is_for_this_machine_only(tmp_path: Path, command: str, address: str) -> None:
    """An address that others reach, with open access, does not start."""
    result = invoke(write_config(tmp_path, server={"listen": [address]}), command)
    assert result.exit_code == 78
    assert address in result.stderr and 'access.mode = "open"' in result.stderr


@COMMANDS
def test_a_policy_fault_names_file_line_column_and_reason(tmp_path: Path, command: str) -> None:
    """Every broken file is reported, with the line and a mark under the place."""
    (tmp_path / "one.gr").write_text('raise "no" if:\n    (m: Message)\n    m.content = 1\n')
    (tmp_path / "two.gr").write_text('raise "no" if:\n    (m: Mesage)\n')
    result = invoke(write_config(tmp_path, guardrails={"policies": ["*.gr"]}), command)
    assert result.exit_code == 78
    lines = result.stderr.splitlines()
    (first,) = [line for line in lines if line.startswith("one.gr:3:")]
    (second,) = [line for line in lines if line.startswith("two.gr:2:")]
    for fault in (first, second):
        _, line, column, reason = fault.split(":", 3)
        assert line.isdecimal() and column.isdecimal() and reason.strip()
    assert any(line.strip().strip("^~") == "" and "^" in line for line in lines)


def make_no_database(file: Path) -> None:
    file.write_bytes(b"not a database at all, nor the beginning of one" * 20)


def make_newer(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('v9999')")


@COMMANDS
@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("nowhere/traces.db", None, "the database file cannot be"),
        ("traces.db", Path.mkdir, "the database file cannot be opened"),
        ("traces.db", make_no_database, "the file is not a SQLite database"),
        ("traces.db", make_newer, "schema is not known to this version"),
    ],
)
def test_a_database_that_cannot_be_opened(
    tmp_path: Path, command: str, name: str, make: Callable[[Path], None] | None, words: str
) -> None:
    """One line, which names the database."""
    file = tmp_path / name
    if make is not None:
        make(file)
    database = f"sqlite:///{file}"
    result = invoke(
        configured(tmp_path, {"server": {"listen": ["127.0.0.1:0"]}, "traces": {"database": database}}), command
    )
    assert (result.exit_code, result.stdout) == (78, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"traces.database: {database}: ") and words in line


def test_check_config_leaves_a_database_as_it_is(tmp_path: Path) -> None:
    """It is tried, but neither made nor given tables nor upgraded: a server may be at work on it."""
    file = tmp_path / "traces.db"
    config = configured(tmp_path, {"traces": {"database": f"sqlite:///{file}"}})
    assert invoke(config, "check-config").exit_code == 0
    assert not file.exists()
    file.touch()
    assert invoke(config, "check-config").exit_code == 0
    assert tables(file) == []
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('0001')")
    assert invoke(config, "check-config").exit_code == 0
    assert tables(file) == ["alembic_version"]


def tables(file: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


def test_a_configuration_that_can_be_used(tmp_path: Path) -> None:
    """check-config says what it found, and makes no database."""
    (tmp_path / "rule.gr").write_text('raise "no" if:\n    (m: Message)\n    "x" in m.content\n')
    result = invoke(write_config(tmp_path, guardrails={"policies": ["rule.gr"]}), "check-config")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1 blocking, 0 asking, 0 masking and 0 logging" in result.stdout
    assert not (tmp_path / "traces.db").exists()


@COMMANDS
@pytest.mark.parametrize(
    ("content", "words"), [(b"[server\n", "line 1"), (b"\xff\xfe", "not UTF-8"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read(tmp_path: Path, command: str, content: bytes | None, words: str) -> None:
    file = tmp_path / "config.toml"
    if content is not None:
        file.write_bytes(content)
    result = invoke(file, command)
    assert result.exit_code == 78
    assert str(file) in result.stderr and words in result.stderr


@COMMANDS
def test_a_variable_that_names_no_section(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error in a variable is a fault too, not a setting that silently does nothing."""
    monkeypatch.setenv("GEMINI_PROXY_SERVR__LOOP", "uvloop")
    result = invoke(write_config(tmp_path), command)
    assert result.exit_code == 78
    assert "GEMINI_PROXY_SERVR__LOOP" in result.stderr and "server" in result.stderr


@COMMANDS
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("GEMINI_PROXY_SERVER__LISTEN", "127.0.0.1:1", "expected JSON"),
        ("GEMINI_PROXY_UPSTREAM", f'{{"api_key": "{CANARY}"', "expected JSON"),
        ("GEMINI_PROXY_SERVER", "[" * 100_000, "expected JSON"),
        ("GEMINI_PROXY_UPSTREAM", f'"{CANARY}"', "upstream: a text: expected a table"),
        ("GEMINI_PROXY_UPSTREAM__APIKEY", CANARY, 'did you mean "api_key"'),
        ("GEMINI_PROXY_GUARDRAILS__TIMEOUT", "-1", "'-1': expected greater than 0"),
        ("gemini_proxy_guardrails__remote__url", "x.example", "'x.example': expected a URL"),
        ("GEMINI_PROXY_EXPLORER__PUSH", '{"url": "x.example"}', "explorer.push.url: 'x.example': expected a URL"),
    ],
)
def test_a_variable_with_a_wrong_value(
    tmp_path: Path, command: str, variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is named, so that nobody looks for it in the file."""
    monkeypatch.setenv(variable, value)
    result = invoke(write_config(tmp_path), command)
    assert result.exit_code == 78
    assert result.stderr.startswith(f"environment: {variable}: ") and words in result.stderr
    assert CANARY not in result.output


@COMMANDS
def test_a_wrong_variable_is_no_fault_of_the_others(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_PROXY_SERVER__LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("GEMINI_PROXY_SERVER__LOOP", "asyncio")
    monkeypatch.setenv("GEMINI_PROXY_UPSTREAM__API_KEY", CANARY)
    result = invoke(write_config(tmp_path), command)
    assert result.stderr.splitlines() == [
        'environment: GEMINI_PROXY_SERVER__LISTEN: expected JSON, such as \'["one", "two"]\' for a list'
    ]


@COMMANDS
@pytest.mark.parametrize(
    "sections",
    [
        {"upstream": {"base_url": [f"https://u:{CANARY}@h"]}},
        {"server": {"listen": [f"http://u:{CANARY}@h"]}},
        {"upstream": {"base_url": f"https://h/p#{CANARY}"}},
        {"explorer.push": {"url": f"https://h/#{CANARY}"}},
    ],
)
def test_a_wrong_address_shows_no_secret(tmp_path: Path, command: str, sections: Sections) -> None:
    result = invoke(configured(tmp_path, sections), command)
    assert result.exit_code == 78
    assert CANARY not in result.output


@COMMANDS
def test_a_folder_is_no_configuration(tmp_path: Path, command: str) -> None:
    result = invoke(tmp_path, command)
    assert result.exit_code == 78 and "Is a directory" in result.stderr


@pytest.mark.parametrize("arguments", [["nonsense"], ["serve", "--nonsense"], ["serve", "more"]])
def test_usage(arguments: list[str]) -> None:
    """What is not a command, an option or an argument is exit code 2."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_check_config_warns_of_refusals_that_would_refuse_the_chat(tmp_path: Path) -> None:
    """The prefix is a part of the refusal; a logging rule refuses nothing."""
    (tmp_path / "wall.gr").write_text('raise "x" if:\n    (m: Message)\n    "Wall" in m.content\n')
    policies = ["wall.gr"]
    warning = "wall.gr:1:1: its refusal would refuse the rest of the chat\n"
    nothing = "No policy file blocks, asks or masks"
    for guardrails, prefix, expected in (
        ({"policies": policies}, "[Wall]", warning),
        ({"policies": policies}, "[Invariant]", ""),
        ({"log_policies": policies}, "[Wall]", nothing),
    ):
        config = configured(tmp_path, {"guardrails": guardrails, "refusals": {"prefix": prefix}})
        result = invoke(config, "check-config")
        assert (result.exit_code, result.stderr[: len(expected)]) == (0, expected)
        assert ("refuse the rest" in result.stderr) == (expected == warning) and bool(result.stderr) == bool(expected)
