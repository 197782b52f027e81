"""A dataset's policies, from outside."""

import asyncio
import re

import aiohttp

from tests.conftest import StartProxy
from tests.explorer.api import SECRETIVE, Api

UNKNOWN = "00000000-0000-0000-0000-000000000000"


async def test_policies_are_kept_listed_changed_and_removed(api: Api) -> None:
    """Each change is in its own answer and in the list; what is not given stays as it was."""
    made = await api.dataset()
    path = f"/dataset/{made['id']}/policy"
    dataset = await api.post(path, {"name": "one", "policy": SECRETIVE})
    [one] = dataset["extra_metadata"]["policies"]
    expected = {"name": "one", "content": SECRETIVE, "enabled": True, "action": "log", "extra_metadata": {}}
    assert one.items() >= expected.items()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", one["last_updated_time"])
    off = {"name": "two", "policy": SECRETIVE, "enabled": False, "action": "block", "extra_metadata": {"a": 1}}
    await api.post(path, off)
    assert await _names(api) == ["one", "two"]
    changed = await api.put(f"{path}/{one['id']}", {"enabled": False, "action": "block", "name": "uno"})
    assert (
        changed["extra_metadata"]["policies"][0].items()
        >= {
            **expected,
            "name": "uno",
            "enabled": False,
            "action": "block",
        }.items()
    )
    renewed = await api.put(f"{path}/{one['id']}", {"policy": f"# why\n{SECRETIVE}", "extra_metadata": {"b": 2}})
    assert renewed["extra_metadata"]["policies"][0].items() >= {"name": "uno", "extra_metadata": {"b": 2}}.items()
    left = await api.delete(f"{path}/{one['id']}")
    assert [policy["name"] for policy in left["extra_metadata"]["policies"]] == ["two"]
    assert await _names(api) == ["two"]


async def test_versions_are_listed_and_restored(api: Api) -> None:
    """The newest first, with who; a removed policy comes back with its id, and what does not load stays away."""
    made = await api.dataset()
    path = f"/dataset/{made['id']}/policy"
    [one] = (await api.post(path, {"name": "one", "policy": SECRETIVE}))["extra_metadata"]["policies"]
    own = f"{path}/{one['id']}"
    await api.put(own, {"name": "uno", "action": "block", "extra_metadata": {"b": 2}})
    await api.put(own, {"action": "block"})
    await api.delete(own)
    shown = [
        (version["version"], version["name"], version["action"], version["removed"], version["extra_metadata"])
        for version in await api.get(f"{own}/versions")
    ]
    assert shown == [
        (3, "uno", "block", True, {"b": 2}),
        (2, "uno", "block", False, {"b": 2}),
        (1, "one", "log", False, {}),
    ]
    [first] = await api.get(f"{own}/versions?limit=1&before=2")
    assert (first["version"], first["content"], bool(first["by"]), bool(first["time"])) == (1, SECRETIVE, True, True)
    [back] = (await api.post(f"{own}/versions/1/restore", {}))["extra_metadata"]["policies"]
    assert (back["id"], back["name"], back["action"]) == (one["id"], "one", "log")
    assert [version["version"] for version in await api.get(f"{own}/versions?before=9")] == [4, 3, 2, 1]
    for wrong in ("5", "0", "x", "9" * 12, "%C2%B2"):
        assert await api.refused("POST", f"{own}/versions/{wrong}/restore") == (404, "There is no such version")
    assert (await api.refused("GET", f"{path}/{UNKNOWN}/versions"))[0] == 404


async def test_what_holds_of_the_files_is_listed(start_proxy: StartProxy, session: aiohttp.ClientSession) -> None:
    """Beside the policies, in fields of their own: an enabled policy takes the place of the files' of its action."""
    proxy = await start_proxy(policy=SECRETIVE, log_policy=SECRETIVE, guardrails={"header_policies": "off"})
    api = Api(session, proxy.url)
    path = f"/dataset/{(await api.dataset())['id']}/policy"

    async def listed() -> list[tuple[str, str]]:
        answer = await api.get(f"{api.at('dataset')}/policy")
        assert answer["header_policies"] == "off"
        assert all(rule["content"] == SECRETIVE and rule["id"] for rule in answer["files"])
        return [(rule["name"], rule["action"]) for rule in answer["files"]]

    blocks, logs = ("test policy", "block"), ("test log policy", "log")
    assert await listed() == [blocks, logs]
    kept = (await api.post(path, {"name": "own", "policy": SECRETIVE}))["extra_metadata"]["policies"][0]
    assert await listed() == [blocks]
    await api.put(f"{path}/{kept['id']}", {"action": "block"})
    assert await listed() == [logs]
    await api.put(f"{path}/{kept['id']}", {"enabled": False})
    assert await listed() == [blocks, logs]


async def test_a_policy_that_does_not_load_is_not_kept(api: Api) -> None:
    """The refusal names the line and the reason, and what was there stays as it was."""
    path = f"/dataset/{(await api.dataset())['id']}/policy"
    broken = 'raise "x" if:\n    (m: Message)\n    secretz(m.content)\n'
    status, detail = await api.refused("POST", path, {"name": "p", "policy": broken})
    assert status == 400
    assert detail.startswith('Invalid Policy string: line 3, column 5: unknown name "secretz"')
    kept = (await api.post(path, {"name": "p", "policy": SECRETIVE}))["extra_metadata"]["policies"]
    assert (await api.refused("PUT", f"{path}/{kept[0]['id']}", {"name": "q", "policy": broken}))[0] == 400
    assert (await api.get(f"{api.at('dataset')}/policy"))["policies"] == kept


NOT_KEPT: list[tuple[object, str]] = [
    ({}, "Request should not be empty"),
    ({"policy": SECRETIVE}, "Name must be provided and non-empty"),
    ({"name": "", "policy": SECRETIVE}, "Name must be provided and non-empty"),
    ({"name": " ", "policy": SECRETIVE}, "Name must be provided and non-empty"),
    ({"name": ["p"], "policy": SECRETIVE}, "Name must be provided and non-empty"),
    ({"name": "a\0b", "policy": SECRETIVE}, "name must not hold the character NUL"),
    ({"name": "p" * 257, "policy": SECRETIVE}, "name must not be longer than 256 characters"),
    ({"name": "p"}, "Policy content must be provided and non-empty"),
    ({"name": "p", "policy": "\n"}, "Policy content must be provided and non-empty"),
    ({"name": "p", "policy": {}}, "Policy content must be provided and non-empty"),
    ({"name": "p", "policy": f"# \0\n{SECRETIVE}"}, "policy must not hold the character NUL"),
    ({"name": "p", "policy": "#" * 65_537}, "policy must not be longer than 65536 characters"),
    ({"name": "p", "policy": SECRETIVE, "enabled": 1}, "enabled must be a boolean"),
    ({"name": "p", "policy": SECRETIVE, "action": "shout"}, 'action must be "block", "ask", "mask" or "log"'),
    ({"name": "p", "policy": SECRETIVE, "action": {}}, 'action must be "block", "ask", "mask" or "log"'),
    ({"name": "p", "policy": SECRETIVE, "extra_metadata": []}, "extra_metadata must be a dictionary"),
    (
        {"name": "p", "policy": SECRETIVE, "extra_metadata": {"x": "y" * 16_384}},
        "extra_metadata must not be larger than 16384 bytes",
    ),
]


async def test_what_is_wrong_with_a_policy_is_said(api: Api) -> None:
    """A policy that cannot be kept is 400 with the reason, and nothing is kept."""
    made = await api.dataset()
    for body, detail in NOT_KEPT:
        assert await api.refused("POST", f"/dataset/{made['id']}/policy", body) == (400, detail)
        assert await _names(api) == []


NOT_CHANGED: list[tuple[object, str]] = [
    ({}, "Request should not be empty"),
    ({"name": ""}, "Name must be non-empty if provided"),
    ({"name": None}, "Name must be non-empty if provided"),
    ({"policy": ""}, "Policy must be non-empty if provided"),
    ({"enabled": "no"}, "enabled must be a boolean"),
    ({"action": 3}, 'action must be "block", "ask", "mask" or "log"'),
    ({"extra_metadata": "x"}, "extra_metadata must be a dictionary"),
    ({"extra_metadata": {"x": "y" * 16_384}}, "extra_metadata must not be larger than 16384 bytes"),
]


async def test_what_is_wrong_with_a_change_is_said(api: Api) -> None:
    """A change that cannot be made is 400 with the reason, and changes nothing."""
    path = f"/dataset/{(await api.dataset())['id']}/policy"
    [before] = (await api.post(path, {"name": "p", "policy": SECRETIVE}))["extra_metadata"]["policies"]
    for body, detail in NOT_CHANGED:
        assert await api.refused("PUT", f"{path}/{before['id']}", body) == (400, detail)
        assert (await api.get(f"{api.at('dataset')}/policy"))["policies"] == [before]


async def test_a_change_leaves_what_it_does_not_name(checker: Api) -> None:
    """Not as it was when the call came: a policy that is switched off while a long text is compiled stays off."""
    path = f"/dataset/{(await checker.dataset())['id']}/policy"
    [kept] = (await checker.post(path, {"name": "p", "policy": SECRETIVE}))["extra_metadata"]["policies"]
    long = "".join(SECRETIVE.replace("a secret", str(number)) for number in range(500))
    renewed = asyncio.ensure_future(checker.put(f"{path}/{kept['id']}", {"policy": long}))
    off = checker.put(f"{path}/{kept['id']}", {"enabled": False, "action": "block"})
    answers = await asyncio.gather(renewed, off)
    [policy] = (await checker.get(f"{checker.at('dataset')}/policy"))["policies"]
    assert (policy["content"] == long, policy["enabled"], policy["action"]) == (True, False, "block"), answers


async def test_what_is_not_there_is_404(api: Api) -> None:
    """An unknown dataset or policy, and an id that is none."""
    path = f"/dataset/{(await api.dataset())['id']}/policy"
    policy = {"name": "p", "policy": SECRETIVE}
    for missing in (UNKNOWN, "x", "%00"):
        assert await api.refused("POST", f"/dataset/{missing}/policy", policy) == (404, "Dataset not found")
        assert await api.refused("PUT", f"{path}/{missing}", policy) == (404, "Policy to update not found")
        assert await api.refused("DELETE", f"{path}/{missing}") == (404, "Policy not found")


async def test_a_dataset_has_a_hundred_policies_at_most(api: Api) -> None:
    """One more is refused."""
    path = f"/dataset/{(await api.dataset())['id']}/policy"
    await asyncio.gather(*(api.post(path, {"name": f"p{number}", "policy": SECRETIVE}) for number in range(100)))
    assert await api.refused("POST", path, {"name": "p", "policy": SECRETIVE}) == (
        400,
        "A dataset must not have more than 100 policies",
    )


async def _names(api: Api) -> list[str]:
    return [policy["name"] for policy in (await api.get(f"{api.at('dataset')}/policy"))["policies"]]


async def test_a_rule_in_shadow_by_api(checker: Api) -> None:
    """It has the name and action of its rule, is promoted as it was looked at, and faults are said in words."""
    own = f"/dataset/{(await checker.dataset())['id']}"
    whole = await checker.post(f"{own}/policy", {"name": "one", "policy": SECRETIVE, "action": "block"})
    [rule] = whole["extra_metadata"]["policies"]
    for wrong, said in (
        (
            {"policy": SECRETIVE, "policy_id": rule["id"], "share": 101},
            "share must be a whole number from 0 to 100, in percent",
        ),
        (
            {"policy": "raise", "policy_id": rule["id"], "share": 1},
            "Invalid Policy string: line 1, column 6: expected a message or PolicyViolation",
        ),
        ({"policy": SECRETIVE, "share": 1}, "Name must be provided and non-empty"),
    ):
        status, detail = await checker.refused("POST", f"{own}/shadows", wrong)
        assert (status, detail[:40]) == (400, said[:40])
    unknown = {"policy": SECRETIVE, "policy_id": UNKNOWN, "name": "x", "share": 1}
    assert await checker.refused("POST", f"{own}/shadows", unknown) == (404, "Policy not found")
    shadow = await checker.post(f"{own}/shadows", {"policy": f"# 2\n{SECRETIVE}", "policy_id": rule["id"], "share": 5})
    assert (shadow["name"], shadow["action"], shadow["share"], shadow["policy_id"]) == ("one", "block", 5, rule["id"])
    there = f"{own}/shadows/{rule['id']}"
    assert (await checker.put(there, {"share": 50}))["share"] == 50
    assert await checker.get(f"{there}/differences?kind=action&limit=5") == []
    await checker.put(f"{own}/policy/{rule['id']}", {"enabled": False})
    promote = f"{there}/promote"
    assert (await checker.refused("POST", promote, {"id": shadow["id"]}))[0] == 409
    [again] = await checker.get(f"{own}/shadows")
    [promoted] = (await checker.post(promote, {"id": again["id"]}))["extra_metadata"]["policies"]
    assert (promoted["content"], promoted["enabled"]) == (f"# 2\n{SECRETIVE}", True)
    for method, path, body in (("POST", promote, {"id": 1}), ("PUT", there, {"share": 1}), ("DELETE", there, None)):
        assert await checker.refused(method, path, body) == (404, "The rule has no shadow")
