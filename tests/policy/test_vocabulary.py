"""What editors know of the language is what the compiler knows."""

import pytest

from gemini_proxy.policy import BUILTIN, OUTSIDE, DetectorRegistry, PolicyError, compile_policy
from gemini_proxy.policy.detectors.outside import OutsideDetector
from gemini_proxy.policy.run.builtins import FUNCTIONS
from gemini_proxy.policy.vocabulary import vocabulary

PLUGIN = OutsideDetector("shouting", (), positional=("loudness",))
EVERY = BUILTIN.with_detectors(*OUTSIDE)


def test_every_name_that_can_be_called_is_known() -> None:
    """With what it means; of a detector that was installed only what it takes is known."""
    callables = {word.name: word for word in vocabulary(EVERY.with_detectors(PLUGIN)).callables}
    assert callables.keys() == EVERY.names | FUNCTIONS.keys() | {
        *("find", "match", "count", "forall", "PolicyViolation", "shouting"),
    }
    assert callables["shouting"].signature == "(x, loudness)"
    assert [name for name, word in callables.items() if "installed here" in word.about] == ["shouting"]


@pytest.mark.parametrize("detectors", [BUILTIN, EVERY], ids=["built in", "asked as well"])
def test_a_name_comes_from_the_module_that_is_given(detectors: DetectorRegistry) -> None:
    """Each import that an editor writes loads, and each that it offers."""
    words = vocabulary(detectors)
    imports = {f"from {word.module} import {word.name}\n" for word in words.callables if word.module}
    imports |= {f"from {module} import {name}\n" for module, names in words.modules.items() for name in names}
    compile_policy("".join(sorted(imports)), detectors=detectors)
    # That can fail.
    with pytest.raises(PolicyError):
        compile_policy("from invariant.parsers import secrets\n", detectors=detectors)
