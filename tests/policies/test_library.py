"""The policies that come with the proxy do what their first lines say."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main
from gemini_proxy.cli.policy_cases import read_cases, run_case
from gemini_proxy.cli.policy_files import usable_policy
from gemini_proxy.gemini_keys import GEMINI_KEY

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "policies").glob("*.gr"))
EXAMPLES = ROOT.parent / "shared" / "policies" / "examples.json"
# Which of the verified examples each policy has to agree with.
EXAMPLE_OF = {
    "canary": "11", "code-execution": "9", "exfiltration": "1", "injection": "7", "loop": "6",
    "markdown-images": "12", "paths": "4", "pii": "2", "secrets": "3", "tools": "10",
}  # fmt: skip
# The examples are of the stock language, which knows neither who said a value, nor what a tool was declared as before,
# nor any action but refusing.
WITHOUT_EXAMPLE = ["confidential", "mask-pii", "mask-secrets", "pinned-tools", "provenance"]
# As the detector knows them, but in no policy or case: what looks like a key would set off every scanner.
SECRET = re.compile(
    r"gh[pousr]_[A-Za-z0-9]{36}|" + GEMINI_KEY + r"|A(KIA|SIA)[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|glpat-"
)

each = pytest.mark.parametrize("file", LIBRARY, ids=lambda file: file.stem)


def cases_of(file: Path) -> Path:
    return file.with_suffix(".cases.yaml")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_library_is_whole() -> None:
    """Fifteen policies, each with its cases, and no case file without a policy."""
    assert [file.stem for file in LIBRARY] == sorted([*EXAMPLE_OF, *WITHOUT_EXAMPLE])
    assert sorted((ROOT / "policies").iterdir()) == sorted([*LIBRARY, *map(cases_of, LIBRARY)])


@each
def test_policies_load_without_a_warning(file: Path) -> None:
    """``policy check --strict`` finds nothing."""
    result = run("policy", "check", "--strict", file)
    assert (result.exit_code, "warning" in result.output) == (0, False)


@each
def test_every_case_is_ok(file: Path) -> None:
    """``policy test`` passes."""
    result = run("policy", "test", file, cases_of(file))
    assert result.exit_code == 0, result.output


@each
def test_cases_cover_the_policy(file: Path) -> None:
    """At least six cases, two of them near misses, and between them every rule fires."""
    policy, cases = usable_policy(file), read_cases(cases_of(file))
    assert len(cases) >= 6
    assert sum(case.fires is False for case in cases) >= 2
    fired = {violation.rule for case in cases for violation in run_case(policy, case).violations}
    assert {rule.line for rule in policy.rules} == {rule.line for rule in fired}


@each
def test_what_fires_points_at_something(file: Path) -> None:
    """Every violation has a range."""
    policy = usable_policy(file)
    for case in read_cases(cases_of(file)):
        for violation in run_case(policy, case).violations:
            assert violation.ranges, case.name


@each
def test_the_first_lines_say_what_a_policy_does(file: Path) -> None:
    """Each begins with what it stops and what it does not, and names every parameter."""
    comment = "\n".join(re.findall(r"^#.*", file.read_text().partition("\n\n")[0], re.MULTILINE))
    assert re.search(r"^# Stops +\S", comment, re.MULTILINE)
    assert re.search(r"^# Not +\S", comment, re.MULTILINE)
    for parameter in usable_policy(file).parameters:
        assert re.search(rf"^# Parameters  {parameter}\b", comment, re.MULTILINE)


@each
def test_the_verified_examples_agree(file: Path) -> None:
    """On the example about the same danger, every conversation comes out as it was verified."""
    if file.stem in WITHOUT_EXAMPLE:
        pytest.skip("no verified example is about this danger")
    if not EXAMPLES.exists():
        pytest.skip("the shared examples are not beside this repository")
    result = run("policy", "test", file, EXAMPLES, "--only", EXAMPLE_OF[file.stem])
    assert result.exit_code == 0, result.output


def test_nothing_looks_like_a_key() -> None:
    """No file of the library has what a scanner for secrets would report."""
    assert SECRET.search("a ghp_" + "a" * 36)
    assert [file.name for file in (ROOT / "policies").iterdir() if SECRET.search(file.read_text())] == []
