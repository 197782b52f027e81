"""The page of a rule in shadow, from the editor to its promotion."""

import re

from gemini_proxy.explorer.app_keys import SHADOWS
from gemini_proxy.traces.schema import policy_shadows
from gemini_proxy.traces.shadows import Comparisons, Difference, KeptViolation, Results
from tests.explorer.browsing import SECRETIVE, Browser, dataset, mine, record, rule, rules
from tests.support.proxy import Proxy

RULES = "/explorer/datasets/demo/rules"
NEWER = SECRETIVE.replace("secret", "<b>key</b>")


async def test_a_version_is_run_in_shadow_and_promoted(proxy: Proxy, browser: Browser) -> None:
    """The page shows the difference, the counts and the exchanges; the trace shows both verdicts."""
    kept = await rule(proxy)
    own = f"{RULES}/{kept.id}"
    assert f'formaction="{own}/shadow"' in (await browser.get(own)).body
    wrong = await browser.post(f"{own}/shadow", name=kept.name, content="raise", share="25")
    assert (wrong.status, "line 1, column 6" in wrong.text) == (400, True)
    started = await browser.post(f"{own}/shadow", name=kept.name, content=NEWER, action="mask", share="25")
    assert started.location == f"{own}/shadow"
    [shadow] = await proxy.app[SHADOWS].of(await dataset(proxy))
    [trace] = await record(proxy, mine("a key", dataset="demo"))
    found = Comparisons(4, both=1, only_new=1, ranges_differ=1, failed=2, milliseconds=8, slowest=5, failure="too long")
    violation = KeptViolation("a <b>key</b> was asked for", "mask", ("messages.0.content:2-5",))
    difference = Difference(trace.id, 1.0, "only_new", (), (violation,))
    await proxy.app[SHADOWS].add({shadow.seq: Results(found, [difference])})
    page = await browser.get(f"{own}/shadow")
    for said in ("on 25\N{NO-BREAK SPACE}% of the conversations", "No verdict on 2 exchanges", "2.0 ms a check"):
        assert said in page.text
    assert [re.sub("<[^>]*>", "", one) for one in re.findall(r"<ins>.*?</ins>", page.body)][0].startswith("+ added: ra")
    assert f"/explorer/traces/{trace.id}" in page.links() and "a <b>key</b> was asked for" in page.text
    assert "a <b>key</b> was" not in (await browser.get(f"{own}/shadow?kind=action")).text.partition("Exchanges in")[2]
    shown = await browser.get(f"/explorer/traces/{trace.id}")
    assert "In shadow: no secrets" in shown.text and f"{own}/shadow" in shown.links()
    assert f"{own}/shadow" in (await browser.get(RULES)).links()
    assert (await browser.post(f"{own}/shadow/share", share="50")).status == 303
    for share in ("101", "-1", "x", ""):
        assert (await browser.post(f"{own}/shadow/share", share=share)).status == 400
    assert "50" in (await browser.get(f"{own}/shadow/edit")).body
    assert (await browser.post(f"{own}/shadow/promote", shadow=f"{shadow.seq + 1}")).status == 409
    assert await rules(proxy) == [("no secrets", "block", True, SECRETIVE)]
    assert (await browser.post(f"{own}/shadow/promote", shadow=f"{shadow.seq}")).location == f"{own}/versions"
    assert await rules(proxy) == [("no secrets", "mask", True, NEWER)]
    for path in ("", "/edit"):
        assert (await browser.get(f"{own}/shadow{path}")).status == 404
    for step in ("share", "promote", "end"):
        assert (await browser.post(f"{own}/shadow/{step}", share="5")).status == 404


async def test_a_new_rule_is_run_in_shadow_and_ended(proxy: Proxy, browser: Browser) -> None:
    """It is listed with the rules, and edited, without being one; what does not load is not promoted."""
    await dataset(proxy)
    started = await browser.post(f"{RULES}/shadow", name="new", content=SECRETIVE, action="block", share="100")
    own = started.location
    assert re.fullmatch(rf"{RULES}/[0-9a-f-]{{36}}/shadow", own)
    listed = await browser.get(RULES)
    assert "only in shadow, 100\N{NO-BREAK SPACE}%" in listed.text and own in listed.links()
    form = await browser.get(f"{own}/edit")
    assert f'action="{own}"' in form.body and ">Save<" not in form.body
    wrong = await browser.post(own, name="", content=SECRETIVE, action="block", share="100", of_shadow="")
    assert (wrong.status, ">Save<" in wrong.body, "A rule needs a name" in wrong.text) == (400, False, True)
    assert (await browser.post(own, name="newer", content=NEWER, action="ask", share="7")).location == own
    page = await browser.get(own)
    assert "This rule would be new" in page.text and "Shadow of “newer”" in page.text
    await proxy.store.database.write(
        lambda connection: connection.execute(policy_shadows.update().values(content="raise"))
    )
    [shadow] = await proxy.app[SHADOWS].of(await dataset(proxy))
    refused = await browser.post(f"{own}/promote", shadow=f"{shadow.seq}")
    assert (refused.status, "does not load any more: line 1" in refused.text) == (400, True)
    assert (await browser.post(f"{own}/end")).location == RULES
    assert await proxy.app[SHADOWS].of(await dataset(proxy)) == [] and await rules(proxy) == []
    unknown = f"{RULES}/00000000-0000-0000-0000-000000000000/shadow"
    assert (await browser.post(unknown, name="x", content=SECRETIVE, share="1")).status == 404
