"""Find keys, tokens and passwords by the forms that their vendors give them: ``secrets``.

``secrets(x, generic=False)`` leaves out values that only the word before them identifies, such as ``password = "..."``.
With ``raw=True`` it does not decode disguised text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gemini_proxy.gemini_keys import GEMINI_KEY
from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.detectors.disguises import Disguises
from gemini_proxy.policy.detectors.forms import Form, Forms
from gemini_proxy.policy.run.budget import Meter

_UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# Random text has many different characters; a name or a repeated word has few.
_DISTINCT: Final = 6
_DISTINCT_GENERIC: Final = 11
# Placeholders for passwords in examples.
_EXAMPLE: Final = re.compile(
    r"(?i)^(?:pass|passw|password|passwd|pwd|pw|secret|user|username|token|key|foo|bar|test|example|your.*|my.*|"
    r"x+|\*+|\.+|[%$<{\[(].*)$"
)
# The first value of a manifest's data.
_DATA: Final = r"\bdata:[ \t\r\n].{0,100}?[A-Za-z0-9_.-]+:[ \t]*(?:[|>][+-]?[ \t\r\n]+)?['\"]?[a-z0-9+/]{10,}"
_CURL: Final = r"(?i)\bcurl\b[^\n|;]{0,200}?[ \t]"
# From the name of a value to the value: quotes, "=", ":", "=>", ":=", "||=", a tag's end, a call's comma.
_IS: Final = r"""[A-Za-z0-9_ .\[\]-]{0,24}[\\'" \t\]]{0,3}(?:=|>|:{1,3}=?|\|\||,)[>=\\'"` \t(]{0,5}"""


def _varied(value: str, distinct: int = _DISTINCT) -> bool:
    """Return whether a text looks random; that stays so if the text goes on."""
    return any(char.isdigit() for char in value) and len(set(value)) >= distinct


def _has_random_value(found: str) -> bool:
    """Return whether what follows an assignment sign looks random."""
    return any(map(_varied, re.split(r"""[=>:,]['"`\s(\\]*""", found)[1:]))


def _has_generic_value(found: str) -> bool:
    return any(
        _varied(value, _DISTINCT_GENERIC) and sum(map(str.isdigit, value)) > 1 and any(map(str.isalpha, value))
        for value in re.split(r"""[\s=:'"`]+""", found)[1:]
    )


def _is_no_example(found: str) -> bool:
    """Return whether the password in ``scheme://user:password@`` is not an example."""
    return not _EXAMPLE.match(found.rpartition(":")[2].removesuffix("@"))


def _is_no_example_credential(found: str) -> bool:
    """Return whether the token in ``Authorization: Bearer token`` is not an example."""
    return _varied(found.split()[-1].strip("'\""))


_FORMS: Final = (
    Form("ONEPASSWORD_KEY", r"\bA3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}", ("a3-",)),
    Form("ONEPASSWORD_TOKEN", r"ops_eyJ[A-Za-z0-9+/=_-]{100,}", ("ops_",)),
    Form("ADOBE_SECRET", r"(?i)\bp8e-[a-z0-9]{32}", ("p8e-",)),
    Form("AGE_KEY", r"(?i)AGE-SECRET-KEY-1[qpzry9x8gf2tvdw0s3jn54khce6mua7l]{58}", ("age-secret-key-1",)),
    Form("AIRTABLE_TOKEN", r"\bpat[A-Za-z0-9]{14}[.][a-f0-9]{64}", ("pat",), sign=r"pat[a-z0-9]{14}[.]"),
    Form("ALIBABA_ACCESS_KEY", r"(?i)\bLTAI[a-z0-9]{17,26}", ("ltai",), _varied),
    Form("ANTHROPIC_KEY", r"sk-ant-[a-z0-9]+-[0-9A-Za-z_-]{80,}", ("sk-ant-",)),
    Form("ARTIFACTORY_KEY", r"\bAKCp[A-Za-z0-9]{60,}", ("akcp",)),
    Form("ARTIFACTORY_TOKEN", r"\bcmVmd[A-Za-z0-9]{55,}", ("cmvmd",)),
    Form(
        "AUTHRESS_KEY",
        r"(?i)\b(?:sc|ext|scauth|authress)_[a-z0-9]{5,30}[.][a-z0-9]{4,6}[.]acc[_-][a-z0-9-]{10,32}[.][a-z0-9+/_=-]{30,}",
        ("sc_", "ext_", "scauth_", "authress_"),
        sign=r"[.]acc[_-]",
    ),
    Form("AWS_ACCESS_KEY", r"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}", ("a3t", "abia", "acca", "akia", "asia")),
    Form(
        "AWS_ACCESS_KEY",
        r"(?i)aws.{0,20}?(?:key|pwd|pw|password|pass|token).{0,20}?['\"][0-9a-z/+]{40}['\"]",
        ("aws",),
    ),
    Form(
        "AWS_ACCESS_KEY",
        r"(?i)secret_?access_?key['\"]?[ \t]*[=:][ \t]*['\"]?[0-9a-z/+]{40}",
        ("secret_access_key", "secretaccesskey"),
        _has_random_value,
    ),
    Form("AWS_BEDROCK_KEY", r"\bABSK[A-Za-z0-9+/]{80,}={0,2}", ("absk",)),
    Form("AWS_BEDROCK_KEY", r"bedrock-api-key-YmVkcm9jay5hbWF6b25hd3MuY29t", ("bedrock-api-key-",)),
    Form("AZURE_CLIENT_SECRET", r"[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,}", ("q~",)),
    Form("AZURE_STORAGE_KEY", r"AccountKey=[a-zA-Z0-9+/=]{88}", ("accountkey=",)),
    Form("AZURE_SAS", r"[?&]sig=[A-Za-z0-9%/+]{43,64}(?:%3D|=)", ("sig=",)),
    Form("CLICKHOUSE_KEY", r"\b4b1d[A-Za-z0-9]{38}", ("4b1d",)),
    Form("CLOJARS_TOKEN", r"(?i)CLOJARS_[a-z0-9]{60}", ("clojars_",)),
    Form("CLOUDFLARE_ORIGIN_CA_KEY", r"v1[.]0-[a-f0-9]{24}-[a-f0-9]{146}", ("v1.0-",)),
    Form("DATABRICKS_TOKEN", r"\bdapi[a-f0-9]{32}(?:-[0-9])?", ("dapi",)),
    Form("DIGITALOCEAN_TOKEN", r"do[opr]_v1_[a-f0-9]{64}", ("doo_v1_", "dop_v1_", "dor_v1_")),
    Form("DOPPLER_TOKEN", r"(?i)\bdp[.][a-z]{2,8}[.](?:[a-z0-9_-]{2,35}[.])?[a-z0-9]{40,44}", ("dp.",)),
    Form("DUFFEL_TOKEN", r"(?i)duffel_(?:test|live)_[a-z0-9_=-]{43}", ("duffel_",)),
    Form("DYNATRACE_TOKEN", r"(?i)dt0c01[.][a-z0-9]{24}[.][a-z0-9]{64}", ("dt0c01.",)),
    Form("EASYPOST_KEY", r"(?i)\bEZ[AT]K[a-z0-9]{54}", ("ezak", "eztk")),
    Form("FACEBOOK_TOKEN", r"(?i)\b[0-9]{15,16}(?:\||%7C)[0-9a-z_-]{27,40}", ("|", "%7c"), _varied,
         sign=r"[0-9]{15}(?:\||%7c)"),
    Form("FACEBOOK_TOKEN", r"\bEAA[MC][A-Za-z0-9]{100,}", ("eaam", "eaac")),
    Form("FLUTTERWAVE_KEY", r"(?i)FLW(?:SECK|PUBK)_(?:TEST|LIVE)-[a-z0-9]{12,32}", ("flwseck_", "flwpubk_")),
    Form("FLYIO_TOKEN", r"\bfo1_[A-Za-z0-9_-]{43}|\bfm1[ar]_[A-Za-z0-9+/]{100,}|\bfm2_[A-Za-z0-9+/]{100,}",
         ("fo1_", "fm1a_", "fm1r_", "fm2_")),
    Form("FRAMEIO_TOKEN", r"(?i)fio-u-[a-z0-9_=-]{64}", ("fio-u-",)),
    Form("FREEMIUS_KEY", r"(?i)['\"]secret_key['\"][ \t\r\n]*=>[ \t\r\n]*['\"]sk_[^ \t\r\n]{29}", ("secret_key",)),
    Form("GITHUB_TOKEN", r"gh[poushr]_[A-Za-z0-9_]{36}", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    Form("GITHUB_TOKEN", r"github_pat_[A-Za-z0-9_]{82}", ("github_pat_",)),
    Form(
        "GITLAB_TOKEN",
        r"gl(?:pat|ptt|dt|rt|cbt|soat|ft|ffct|imt|agent|oas)-[0-9A-Za-z_-]{20,}",
        ("glpat-", "glptt-", "gldt-", "glrt-", "glcbt-", "glsoat-", "glft-", "glffct-", "glimt-", "glagent-", "gloas-"),
    ),
    Form("GITLAB_TOKEN", r"\bGR1348941[A-Za-z0-9_-]{20}", ("gr1348941",)),
    Form("GITLAB_TOKEN", r"_gitlab_session=[0-9a-z]{32}", ("_gitlab_session=",)),
    Form("GOOGLE_API_KEY", GEMINI_KEY, ("aiza", "aq.")),
    Form("GOOGLE_OAUTH", r"ya29[.][0-9A-Za-z_-]{20,}", ("ya29.",)),
    Form("GOOGLE_OAUTH", r"GOCSPX-[0-9A-Za-z_-]{28}", ("gocspx-",)),
    Form("GRAFANA_TOKEN", r"eyJrIjoi[A-Za-z0-9+/]{70,}={0,3}", ("eyjrijoi",)),
    Form("GRAFANA_TOKEN", r"\bglc_[A-Za-z0-9+/]{32,}={0,3}|\bglsa_[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}", ("glc_", "glsa_")),
    Form("GROQ_KEY", r"\bgsk_[A-Za-z0-9]{48,}", ("gsk_",)),
    Form("HARNESS_KEY", r"\b[ps]at[.][A-Za-z0-9_-]{22}[.][A-Za-z0-9]{24}[.][A-Za-z0-9]{20}", ("pat.", "sat.")),
    Form("HASHICORP_TOKEN", r"(?i)\b[a-z0-9]{14}[.]atlasv1[.][a-z0-9=_-]{60,}", ("atlasv1",)),
    Form("HEROKU_KEY", r"HRKU-AA[0-9A-Za-z_-]{58}", ("hrku-aa",)),
    Form("HUGGINGFACE_TOKEN", r"(?i)\bhf_[a-z0-9]{34}|\bapi_org_[a-z0-9]{34}", ("hf_", "api_org_")),
    Form("INFRACOST_TOKEN", r"\bico-[A-Za-z0-9]{32}", ("ico-",)),
    Form("INTRA42_SECRET", r"s-s4t2(?:ud|af)-[a-f0-9]{64}", ("s-s4t2",)),
    Form("JWT", r"\bey[A-Za-z0-9]{10,}[.]ey[A-Za-z0-9/\\_-]{8,}[.](?:[A-Za-z0-9/\\_-]{8,}={0,2})?", (".ey",)),
    Form("JWT", r"\bZXlK[A-Za-z0-9+/_\n-]{50,}={0,2}", ("zxlk",)),
    Form("KUBERNETES_SECRET", rf"(?is)\bkind:[ \t]*['\"]?secret\b.{{0,200}}?{_DATA}", ("kind:",)),
    Form("KUBERNETES_SECRET", rf"(?is){_DATA}.{{0,200}}?\bkind:[ \t]*['\"]?secret\b", ("kind:",)),
    Form("LINEAR_KEY", r"(?i)lin_api_[a-z0-9]{40}", ("lin_api_",)),
    Form("MAXMIND_KEY", r"\b[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk", ("_mmk",)),
    Form("TEAMS_WEBHOOK", r"(?i)[.]webhook[.]office[.]com/webhookb2/[^ \t\r\n'\"]{60,}", ("webhook.office.com",)),
    Form("NOTION_TOKEN", r"\bntn_[0-9]{11}[A-Za-z0-9]{35}", ("ntn_",)),
    Form("NPM_TOKEN", r"(?i)npm_[0-9a-z]{36}", ("npm_",)),
    Form("NPM_TOKEN", r"_authToken=[0-9A-Za-z+/=_-]{20,}", ("_authtoken=",)),
    Form("NUGET_PASSWORD", r"(?i)<add key=\"(?:ClearText)?Password\"[ \t\r\n]*value=\"[^\"]{8,}\"", ("<add key=",)),
    Form("OCTOPUS_KEY", r"\bAPI-[A-Z0-9]{26}", ("api-",)),
    Form("OPENAI_KEY", r"sk-(?:[a-z]+-)?[0-9A-Za-z_-]{20,}T3BlbkFJ[0-9A-Za-z_-]{20,}", ("t3blbkfj",)),
    Form("OPENROUTER_KEY", r"sk-or-v1-[a-f0-9]{64}", ("sk-or-v1-",)),
    Form("OPENSHIFT_TOKEN", r"sha256~[A-Za-z0-9_-]{43}", ("sha256~",)),
    Form("PERPLEXITY_KEY", r"\bpplx-[A-Za-z0-9]{48}", ("pplx-",)),
    Form("PLANETSCALE_TOKEN", r"(?i)pscale_(?:tkn|oauth|pw)_[a-z0-9_=.-]{32,}", ("pscale_",)),
    Form("POSTMAN_TOKEN", r"(?i)PMAK-[a-f0-9]{24}-[a-f0-9]{34}", ("pmak-",)),
    Form("PREFECT_TOKEN", r"\bpnu_[A-Za-z0-9]{36}", ("pnu_",)),
    Form("PRIVATE_KEY", r"(?i)-----BEGIN (?:[A-Z0-9_-]+ )*PRIVATE KEY(?: BLOCK)?-----", ("-----begin",)),
    Form("PULUMI_TOKEN", r"\bpul-[a-f0-9]{40}", ("pul-",)),
    Form("PYPI_TOKEN", r"pypi-AgE[0-9A-Za-z_-]{50,}", ("pypi-age",)),
    Form("README_TOKEN", r"(?i)rdme_[a-z0-9]{70}", ("rdme_",)),
    Form("RUBYGEMS_TOKEN", r"rubygems_[a-f0-9]{48}", ("rubygems_",)),
    Form("SCALINGO_TOKEN", r"tk-us-[A-Za-z0-9_-]{48}", ("tk-us-",)),
    Form("SENDGRID_TOKEN", r"(?i)\bSG[.][a-z0-9=_-]{16,24}[.][a-z0-9=_-]{38,46}|\bSG[.][a-z0-9=_.-]{66}", ("sg.",)),
    Form("SENDINBLUE_TOKEN", r"(?i)xkeysib-[a-f0-9]{64}-[a-z0-9]{16}", ("xkeysib-",)),
    Form("SENTRY_TOKEN", r"sntrys_eyJ[A-Za-z0-9+/=_-]{60,}|sntryu_[a-f0-9]{64}", ("sntrys_", "sntryu_")),
    Form("SETTLEMINT_TOKEN", r"\bsm_[aps]at_[A-Za-z0-9]{16}", ("sm_aat_", "sm_pat_", "sm_sat_")),
    Form("SHIPPO_TOKEN", r"(?i)shippo_(?:live|test)_[a-f0-9]{40}", ("shippo_",)),
    Form("SHOPIFY_TOKEN", r"(?i)shp(?:at|ca|pa|ss)_[a-f0-9]{32}", ("shpat_", "shpca_", "shppa_", "shpss_")),
    Form("SIDEKIQ_SECRET", r"(?i)[a-f0-9]{8}:[a-f0-9]{8}@(?:gems|enterprise)[.]contribsys[.]com", ("contribsys.com",)),
    Form("SIDEKIQ_SECRET", r"(?i)contribsys(?:__|[.])com[ \t'\"=:,>]{1,8}[a-f0-9]{8}:[a-f0-9]{8}", ("contribsys",)),
    Form("SLACK_TOKEN", r"(?i)xox[abeposr]-(?:[0-9]+-)*[a-z0-9-]{8,}", ("xox",), _varied),
    Form("SLACK_TOKEN", r"(?i)xoxe[.]xox[bp]-[0-9]-[a-z0-9]{100,}", ("xoxe.",)),
    Form("SLACK_TOKEN", r"(?i)(?:https?://)?hooks[.]slack[.]com/(?:services|workflows|triggers)/"
         r"(?:T[a-z0-9_]+/B[a-z0-9_]+/[a-z0-9_]+|[a-z0-9+/_]{20,})", ("hooks.slack.com",)),
    Form("SLACK_TOKEN", r"(?i)xapp-[0-9]-[a-z0-9]+-[0-9]+-[a-z0-9]+", ("xapp-",)),
    Form("SOURCEGRAPH_TOKEN", r"(?i)\bsgp_(?:(?:[a-f0-9]{16}|local)_)?[a-f0-9]{40}", ("sgp_",)),
    Form("SQUARE_TOKEN", r"\b(?:EAAA|sq0(?:atp|csp)-)[A-Za-z0-9_-]{22,60}", ("eaaa", "sq0"), _varied),
    Form(
        "STRIPE_KEY",
        r"\b(?:sk|rk)_(?:live|test|prod)_[0-9A-Za-z]{10,}|whsec_[0-9A-Za-z]{24,}",
        ("sk_live", "sk_test", "sk_prod", "rk_live", "rk_test", "rk_prod", "whsec_"),
    ),
    Form("TELEGRAM_TOKEN", r"\b[0-9]{5,16}:A[A-Za-z0-9_-]{34}", (":a",), _varied),
    Form("TWILIO_KEY", r"\bSK[0-9a-fA-F]{32}", ("sk",), sign=r"sk[0-9a-f]{6}"),
    Form("VAULT_TOKEN", r"\bhvb[.][A-Za-z0-9_-]{100,}|\bhvs[.][A-Za-z0-9_-]{24,}", ("hvb.", "hvs.")),
    Form("VAULT_TOKEN", r"(?i)\bs[.][a-z0-9]{24}\b", ("s.",), _varied, sign=r"s[.][a-z0-9]{9}"),
    Form("XAI_KEY", r"\bxai-[A-Za-z0-9]{70,}", ("xai-",)),
    Form("YANDEX_TOKEN", r"\bt1[.][A-Za-z0-9_-]+={0,2}[.][A-Za-z0-9_-]{86}={0,2}", ("t1.",), _varied),
    Form("YANDEX_TOKEN", r"\bAQVN[A-Za-z0-9_-]{35,38}|\bYC[A-Za-z0-9_-]{38}\b", ("aqvn", "yc"), _varied),
    Form("DEFINED_NETWORKING_TOKEN", r"(?i)\bdnkey-[a-z0-9=_-]{26}-[a-z0-9=_-]{52}", ("dnkey-",)),
    Form("NEW_RELIC_KEY", r"(?i)\bNR(?:JS-[a-f0-9]{19}|II-[a-z0-9_-]{32}|AK-[a-z0-9]{27})",
         ("nrjs-", "nrii-", "nrak-")),
    Form("DROPBOX_TOKEN", r"(?i)\bsl[.][a-z0-9=_-]{130,}", ("sl.",)),
    Form("DROPBOX_TOKEN", r"\b[A-Za-z0-9]{11}AAAAAAAAAA[A-Za-z0-9_=-]{43}", ("aaaaaaaaaa",)),
    Form("PLAID_TOKEN", rf"(?i)access-(?:sandbox|development|production)-{_UUID}",
         ("access-sandbox-", "access-development-", "access-production-")),
    Form("MAPBOX_TOKEN", r"(?i)\bpk[.][a-z0-9]{60}[.][a-z0-9]{22}", ("pk.",)),
    Form("TYPEFORM_TOKEN", r"(?i)\btfp_[a-z0-9_.=-]{59}", ("tfp_",)),
    Form("ATLASSIAN_TOKEN", r"\bATATT3[A-Za-z0-9_=-]{100,}", ("atatt3",)),
    Form("GOCARDLESS_TOKEN", r"(?i)\blive_[a-z0-9_=-]{40}\b", ("live_",), _varied),
    Form("TWITTER_TOKEN", r"\bA{22}[A-Za-z0-9%]{80,100}", ("aaaaaaaaaaaaaaaaaaaaaa",)),
    Form(
        "CONNECTION_STRING",
        r"(?i)\b[a-z][a-z0-9+.-]{1,20}://[^ \t\r\n:/@'\"<>?#]{0,60}:[^ \t\r\n:/@'\"<>]{3,100}@",
        ("://",),
        _is_no_example,
        sign=r"[^ \t\r\n:/@'\"<>]{3}@",
    ),
    Form(
        "AUTHORIZATION",
        r"(?i)\bauthorization['\"]?[ \t]*[:=][ \t]*['\"]?(?:basic|bearer|token)[ \t]+[a-z0-9+/=_.~-]{16,}",
        ("authorization",),
        _is_no_example_credential,
    ),
    Form("CURL_PASSWORD", _CURL + r"(?:-u|--user)[ \t=]*['\"]?[^ \t\r\n:'\"$]{2,}:[^ \t\r\n'\"$]{3,}", ("curl",)),
    Form("CURL_HEADER", _CURL + r"(?:-H|--header)[ \t=]*['\"](?:x-[a-z-]{0,20}(?:key|token):|"
         r"authorization:[ \t]*(?:basic|bearer|token|api-token)[ \t])[ \t]*[a-z0-9+/=_.~-]{8,}", ("curl",)),
)  # fmt: skip

# Vendors whose values are recognized only by the name before them: the name of the kind, and the forms of that name.
_VENDORS: Final[Mapping[str, tuple[str, ...]]] = {
    name.upper(): (name.replace("_", ""),)
    for name in (
        "adafruit adobe airtable algolia alibaba asana atlassian beamer bitbucket bittrex cloudflare codecov coinbase "
        "confluent contentful discord dropbox etsy facebook fastly finicity finnhub flickr freshbooks gitter heroku "
        "hubspot intercom jfrog kraken kucoin launchdarkly linear linkedin looker mailchimp mapbox mattermost netlify "
        "nytimes okta plaid rapidapi sendbird sentry snyk sonar sourcegraph squarespace travis twitch "
        "twitter yandex zendesk"
    ).split()
} | {
    "ATLASSIAN": ("atlassian", "confluence", "jira"),
    "CISCO_MERAKI": ("meraki",),
    "COHERE": ("cohere", "co_api_key"),
    "DATADOG": ("datadog",),
    "DRONECI": ("droneci", "drone_"),
    "INTRA42": ("intra42", "intra_"),
    "JFROG": ("jfrog", "artifactory", "bintray", "xray"),
    "LOB": ("lob_", "lob-", "lobapi", "lobkey", "lobpub", "lob ="),
    "MAILGUN": ("mailgun",),
    "MESSAGEBIRD": ("messagebird", "message-bird", "message_bird"),
    "NEW_RELIC": ("newrelic", "new-relic", "new_relic"),
    "NYTIMES": ("nytimes", "new-york-times", "newyorktimes"),
    "PRIVATEAI": ("privateai", "private_ai", "private-ai"),
    "SUMOLOGIC": ("sumo",),
    "TELEGRAM": ("telegr",),
}
_ASSIGNED: Final = tuple(
    Form(
        f"{vendor}_SECRET",
        rf"(?i)(?:{'|'.join(map(re.escape, words))}){_IS}[0-9a-z_+/=.:~-]{{14,}}",
        words,
        _has_random_value,
    )
    for vendor, words in _VENDORS.items()
)

_GENERIC_LABEL: Final = "GENERIC_SECRET"
_GENERIC: Final = (
    Form(
        _GENERIC_LABEL,
        r"(?i)(?:password|passwd|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key|auth[_-]?key|credential)s?"
        r"[A-Za-z0-9_-]{0,20}['\"]?[ \t]*(?:=|:|=>|:=)[ \t]*['\"`][0-9a-z+/_~!@#$%^&*=-]{16,200}['\"`]",
        ("passw", "pwd", "passphrase", "secret", "token", "key", "credential"),
        _has_generic_value,
    ),
    Form(
        _GENERIC_LABEL,
        r"(?m)^[ \t]*(?:export[ \t]+)?[A-Z][A-Z0-9_]{0,40}(?:PASSWORD|PASSWD|PWD|SECRET|TOKEN|KEY|CREDENTIALS?)"
        r"[A-Z0-9_]{0,20}=[0-9A-Za-z+/_~!@#%^&*=-]{16,200}",
        ("passw", "pwd", "secret", "token", "key", "credential"),
        _has_generic_value,
    ),
)  # fmt: skip

_ALL: Final = Forms((*_FORMS, *_ASSIGNED, *_GENERIC), stays=True)
_DISGUISES: Final = Disguises(word for rule in (*_FORMS, *_ASSIGNED, *_GENERIC) for word in rule.words)


@dataclass(frozen=True, slots=True)
class SecretsDetector:
    """Labels are the kinds of secret, as in ``GITHUB_TOKEN``."""

    name: str = "secrets"
    options: frozenset[str] = frozenset(("generic", "raw"))
    labels: frozenset[str] = _ALL.labels

    def detect(self, texts: Sequence[str], options: Mapping[str, Any], meter: Meter) -> Iterable[Finding]:
        findings = _ALL.find(texts, meter) if options.get("raw") else _DISGUISES.find(_ALL.find, texts, meter)
        if options.get("generic", True):
            return findings
        # Generic forms come last, so that they do not replace a more specific form.
        return (finding for finding in findings if finding.label != _GENERIC_LABEL)
