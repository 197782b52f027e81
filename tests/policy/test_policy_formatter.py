"""Policies in the standard form: what is written otherwise, and what stays as it is."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.policy import PolicyError, format_policy
from gemini_proxy.policy.lint.formatter import comments
from gemini_proxy.policy.parse.lexer import tokenize

ROOT = Path(__file__).parents[2]
SHIPPED = {file.stem: file.read_text() for file in (ROOT / "policies").glob("*.gr")}

MESSY = """\

# head

from invariant.detectors import( secrets,
 pii)
X:=  [ 1,2 , -3,
   # inside
  "a"  "b" ,   # why
 ]# end
small( x :int ):=
\tx<3   and
    # between
\tx >- 1
\tx   in X [ 1 : -2 ] or not x==2 \\
 or x** 2
\tx == \\
 1 \\
 + x
# about the rule
raise PolicyViolation ( "x" , at = X [0], b= {  "k" :1 , k2 : 2}) if :

   (c:ToolCall)->( d :ToolOutput )~>(e : ToolOutput)
   c is not tool : send({to:<EMAIL_ADDRESS>,x:*,y: -1 ,from: "a" } , *)


   count( min=2 ):
        (m : Message)
        m . content
        # in the block
     # in the rule
   f"{  c }"  ==c.function.is
# about what follows
Y := (1,) if  not  True else ()
raise "y" if: (m: Message)
# the end

"""
TIDY = """\
# head

from invariant.detectors import (secrets,
    pii)
X := [1, 2, -3,
    # inside
    "a" "b",  # why
]  # end

small(x: int) :=
    x < 3 and
        # between
        x > -1
    x in X[1:-2] or not x == 2
        or x ** 2
    x ==
        1 \\
        + x

# about the rule
raise PolicyViolation("x", at=X[0], b={"k": 1, k2: 2}) if:
    (c: ToolCall) -> (d: ToolOutput) ~> (e: ToolOutput)
    c is not tool:send({to: <EMAIL_ADDRESS>, x: *, y: -1, from: "a"}, *)

    count(min=2):
        (m: Message)
        m.content
        # in the block
    # in the rule
    f"{  c }" == c.function.is

# about what follows
Y := (1,) if not True else ()

raise "y" if: (m: Message)
# the end
"""


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_everything_is_written_in_one_way(ends: str) -> None:
    """Spaces, indentation, continued lines, brackets, blank lines and comments."""
    assert format_policy(MESSY.replace("\n", ends), "messy") == TIDY
    assert format_policy(TIDY, "tidy") == TIDY


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_policies_are_in_that_form(name: str) -> None:
    assert format_policy(SHIPPED[name], name) == SHIPPED[name]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "\ufeff# marked\n", "  # indented\n\t\n"])
def test_a_policy_without_rules_is_formatted(text: str) -> None:
    said = [line.strip(" \t\ufeff") for line in text.split("\n")]
    assert format_policy(text, "x") == "".join(f"{line}\n" for line in said if line)


def test_texts_stay_as_they_are() -> None:
    """Quotes, prefixes, escapes, and blanks at the ends of the lines of a long one."""
    rule = 'raise R"\\d" \'x\' if:\n    (m: Message)\n    m.content == """a  \n\tb # c\n  """ + f\'{m:}\'\n'.replace(
        "{m:}", "{ m }"
    )
    assert format_policy(rule, "x") == rule


def test_what_does_not_parse_is_a_fault() -> None:
    """With its place."""
    with pytest.raises(PolicyError) as caught:
        format_policy('raise "x" if:\n    (m: Message\n', "x")
    assert (caught.value.line, caught.value.column) == (2, 5)


WITHIN = ("", " ", "\t", "\n", "\n\n   ", " # a note\n", "\n  # a note\n\n\t", "\\\n")
BETWEEN = ("\n", "\n\n\n", " # a note\n", "\n# a note\n", "\n      # a note\n\n# another\n", "  \n\t\n")
BLANKS = (" ", "   ", "\t", "\xa0", " \\\n")
CHANGES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 7)), min_size=1, max_size=8)


def laid_out(text: str, changes: dict[int, int]) -> str:
    """The same tokens with other white space, and more comments, at some of the places between them."""
    made, depth, end = "", 0, 0
    tokens = [token for token in tokenize(text) if token.kind not in ("newline", "indent", "dedent")]
    for number, token in enumerate(tokens):
        gap = text[end : token.start]
        if number in changes and "#" not in gap:
            change = changes[number]
            if depth:
                gap += WITHIN[change % len(WITHIN)]
            elif "\n" in gap:
                head, _, indentation = gap.rpartition("\n")
                gap = head + BETWEEN[change % len(BETWEEN)] + indentation
            elif gap:
                gap += BLANKS[change % len(BLANKS)]
        made += gap + text[token.start : token.end]
        depth += (token.text in "([{" and token.kind == "op") - (token.text in ")]}" and token.kind == "op")
        end = token.end
    return made


@given(st.sampled_from(sorted(SHIPPED)), CHANGES)
def test_no_layout_changes_what_a_policy_says(name: str, changes: list[tuple[int, int]]) -> None:
    """However it is laid out: it has the same tokens and all comments afterwards, and a second time changes nothing."""
    changed = laid_out(SHIPPED[name], dict(changes))
    formatted = format_policy(changed, "changed")
    assert format_policy(formatted, "formatted") == formatted
    assert comments(formatted) == comments(changed)
    kept = [
        [(token.kind, token.text) for token in tokenize(text) if token.text.strip()] for text in (changed, formatted)
    ]
    assert kept[0] == kept[1]
    assert not re.search(r"[ \t]$", re.sub(r'"""(?s:.*?)"""', "", formatted), re.MULTILINE)
