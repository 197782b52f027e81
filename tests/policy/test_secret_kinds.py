"""Secrets by kind, each made from its vendor's format with random characters in place of what is secret.

In a format ``<a36>`` stands for 36 small letters and digits, ``A`` for capitals, ``m`` for both, ``h`` for hexadecimal,
``d`` for digits, ``l`` for letters, ``e`` for small letters, digits, ``=``, ``_`` and ``-``, ``b`` for base 64, and
``<u>`` for a UUID.
"""

import random
import re
import uuid

import pytest

from tests.policy.conversations import fires, rule, user

ALPHABETS = {
    "a": "abcdefghijklmnopqrstuvwxyz0123456789",
    "A": "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
    "m": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
    "h": "0123456789abcdef",
    "d": "0123456789",
    "l": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "e": "abcdefghijklmnopqrstuvwxyz0123456789_-",
    "b": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/",
    "q": "qpzry9x8gf2tvdw0s3jn54khce6mua7l",
}

FORMS = """
1password-secret-key A3-<A6>-<A11>-<A5>-<A5>-<A5>
1password-service-account-token ops_eyJ<b260>
adobe-client-secret p8e-<a32>
age-secret-key AGE-SECRET-KEY-1<q58>
airtable-personal-access-token pat<m14>.<h64>
alibaba-access-key-id LTAI<a20>
anthropic-admin-api-key sk-ant-admin01-<m93>AA
anthropic-api-key sk-ant-api03-<m93>AA
artifactory-api-key AKCp<m69>
artifactory-reference-token cmVmd<m59>
authress-service-client-access-key sc_<a10>.<a5>.acc_<a20>.<a40>
aws-access-token AKIA<A16>
aws-amazon-bedrock-api-key-long-lived ABSK<b120>
aws-amazon-bedrock-api-key-short-lived bedrock-api-key-YmVkcm9jay5hbWF6b25hd3MuY29t
azure-ad-client-secret <m3>8Q~<m34>
clickhouse-cloud-api-secret-key 4b1d<m38>
clojars-api-token CLOJARS_<a60>
cloudflare-origin-ca-key v1.0-<h24>-<h146>
databricks-api-token dapi<h32>
digitalocean-access-token doo_v1_<h64>
digitalocean-pat dop_v1_<h64>
digitalocean-refresh-token dor_v1_<h64>
doppler-api-token dp.pt.<m43>
duffel-api-token duffel_live_<e43>
dynatrace-api-token dt0c01.<A24>.<A64>
easypost-api-token EZAK<m54>
easypost-test-api-token EZTK<m54>
facebook-access-token <d15>|<m27>
facebook-page-access-token EAAC<m120>
flutterwave-encryption-key FLWSECK_TEST-<h12>
flutterwave-public-key FLWPUBK_TEST-<h32>-X
flutterwave-secret-key FLWSECK_TEST-<h32>-X
flyio-access-token fo1_<m43>
flyio-access-token fm1r_<b120>
flyio-access-token fm2_<b120>
frameio-api-token fio-u-<e64>
freemius-secret-key 'secret_key' => 'sk_<m29>'
gcp-api-key AIza<m35>
gemini-api-key AQ.<m40>
github-app-token ghu_<m36>
github-fine-grained-pat github_pat_<m22>_<m59>
github-oauth gho_<m36>
github-pat ghp_<m36>
github-refresh-token ghr_<m36>
gitlab-cicd-job-token glcbt-<a2>_<m20>
gitlab-deploy-token gldt-<m20>
gitlab-feature-flag-client-token glffct-<m20>
gitlab-feed-token glft-<m20>
gitlab-incoming-mail-token glimt-<m25>
gitlab-kubernetes-agent-token glagent-<m50>
gitlab-oauth-app-secret gloas-<m64>
gitlab-pat glpat-<m20>
gitlab-pat-routable glpat-<m40>.01<a7>
gitlab-ptt glptt-<h40>
gitlab-rrt GR1348941<m20>
gitlab-runner-authentication-token glrt-<m20>
gitlab-scim-token glsoat-<m20>
gitlab-session-cookie _gitlab_session=<h32>
google-oauth-token ya29.<m60>
grafana-api-key eyJrIjoi<m90>==
grafana-cloud-api-token glc_<b80>
grafana-service-account-token glsa_<m32>_<h8>
groq-api-key gsk_<m52>
harness-api-key pat.<m22>.<m24>.<m20>
hashicorp-tf-api-token <m14>.atlasv1.<e64>
heroku-api-key-v2 HRKU-AA<m58>
huggingface-access-token hf_<l34>
huggingface-organization-api-token api_org_<l34>
infracost-api-token ico-<m32>
intra42-client-secret s-s4t2ud-<h64>
jwt eyJ<m40>.eyJ<m60>.<m43>
jwt-base64 ZXlK<m120>
kubernetes-secret-yaml kind: Secret\\ndata:\\n  password: <m24>
linear-api-key lin_api_<m40>
maxmind-license-key <m6>_<m29>_mmk
microsoft-teams-webhook https://acme.webhook.office.com/webhookb2/<u>@<u>/IncomingWebhook/<h32>/<u>
notion-api-token ntn_<d11><m35>
npm-access-token npm_<m36>
nuget-config-password <add key="ClearTextPassword" value="<m12>" />
octopus-deploy-api-key API-<A26>
openai-api-key sk-<m20>T3BlbkFJ<m20>
openai-api-key-project sk-proj-<m58>T3BlbkFJ<m58>
openrouter-api-key sk-or-v1-<h64>
openshift-user-token sha256~<m43>
perplexity-api-key pplx-<m48>
planetscale-api-token pscale_tkn_<m43>
planetscale-oauth-token pscale_oauth_<m43>
planetscale-password pscale_pw_<m43>
postman-api-token PMAK-<h24>-<h34>
prefect-api-token pnu_<m36>
private-key -----BEGIN RSA PRIVATE KEY-----\\n<b64>
pulumi-api-token pul-<h40>
pypi-upload-token pypi-AgEIcHlwaS5vcmc<m70>
readme-api-token rdme_<a70>
rubygems-api-token rubygems_<h48>
scalingo-api-token tk-us-<m48>
sendgrid-api-token SG.<m22>.<m43>
sendinblue-api-token xkeysib-<h64>-<a16>
sentry-org-token sntrys_eyJpYXQiO<b60>LCJyZWdpb25fdXJs<b20>_<m43>
sentry-user-token sntryu_<h64>
settlemint-application-access-token sm_aat_<m16>
settlemint-personal-access-token sm_pat_<m16>
settlemint-service-access-token sm_sat_<m16>
shippo-api-token shippo_live_<h40>
shopify-access-token shpat_<h32>
shopify-custom-access-token shpca_<h32>
shopify-private-app-access-token shppa_<h32>
shopify-shared-secret shpss_<h32>
sidekiq-secret BUNDLE_ENTERPRISE__CONTRIBSYS__COM=<h8>:<h8>
sidekiq-secret bundle config enterprise.contribsys.com <h8>:<h8>
sidekiq-sensitive-url https://<h8>:<h8>@gems.contribsys.com/
slack-app-token xapp-1-<A11>-<d13>-<h64>
slack-bot-token xoxb-<d12>-<d12>-<m24>
slack-config-access-token xoxe.xoxp-1-<A163>
slack-config-refresh-token xoxe-1-<A146>
slack-legacy-bot-token xoxb-<d12>-<m24>
slack-legacy-token xoxs-<d10>-<d10>-<d10>-<h32>
slack-legacy-workspace-token xoxa-2-<m40>
slack-user-token xoxp-<d11>-<d11>-<d11>-<m32>
slack-webhook-url https://hooks.slack.com/services/T<A8>/B<A10>/<m24>
sourcegraph-access-token sgp_<h16>_<h40>
square-access-token sq0atp-<m22>
square-access-token EAAA<m60>
stripe-access-token sk_live_<m24>
stripe-access-token rk_prod_<m24>
telegram-bot-token <d10>:A<m34>
twilio-api-key SK<h32>
vault-batch-token hvb.<m140>
vault-service-token hvs.<m95>
vault-service-token s.<m24>
xai-api-key xai-<m80>
defined-networking-api-token dnkey-<e26>-<e52>
new-relic-browser-api-token NRJS-<h19>
new-relic-insert-key NRII-<e32>
new-relic-user-api-key NRAK-<A27>
dropbox-short-lived-api-token sl.<e135>
dropbox-long-lived-api-token <a11>AAAAAAAAAA<e43>
plaid-api-token access-sandbox-<u>
mapbox-api-token pk.<a60>.<a22>
typeform-api-token tfp_<e59>
atlassian-api-token ATATT3<m186>
gocardless-api-token live_<e40>
twitter-bearer-token AAAAAAAAAAAAAAAAAAAAAA<m90>
yandex-access-token t1.<m40>.<m86>
yandex-api-key AQVN<m36>
yandex-aws-access-token YC<m38>
azure-storage-key AccountKey=<b86>==
azure-sas-signature https://acme.blob.core.windows.net/x?sv=2024-11-04&sig=<m43>%3D
aws-secret-access-key AWS_SECRET_ACCESS_KEY=<b40>
connection-string postgresql://app:<m14>@db.example.com/app
connection-string redis://:<m20>@cache:6379/0
curl-auth-header curl -H 'Authorization: Bearer <m20>' https://api.example.com
curl-auth-user curl -u admin:<m12> https://api.example.com
authorization-header Authorization: Basic <b24>=
"""

# Values that a name tells: kind, the vendor's word, the value.
ASSIGNED = """
adafruit-api-key adafruit <e32>
adobe-client-id adobe <h32>
airtable-api-key airtable <a17>
algolia-api-key algolia <a32>
alibaba-secret-key alibaba <a30>
asana-client-id asana 120<d10>398
asana-client-secret asana <a32>
atlassian-api-token jira <a20><h4>
beamer-api-token beamer b_<e44>
bitbucket-client-id bitbucket <a32>
bitbucket-client-secret bitbucket <e64>
bittrex-access-key bittrex <a32>
bittrex-secret-key bittrex <a32>
cisco-meraki-api-key meraki <h40>
cloudflare-api-key cloudflare <e40>
cloudflare-global-api-key cloudflare <h37>
codecov-access-token codecov <a32>
cohere-api-token cohere <m40>
coinbase-access-token coinbase <e64>
confluent-access-token confluent <a16>
confluent-secret-key confluent <a64>
contentful-delivery-api-token contentful <e43>
datadog-access-token datadog <a40>
discord-api-token discord <h64>
discord-client-id discord <d18>
discord-client-secret discord <e32>
droneci-access-token droneci <a32>
dropbox-api-token dropbox <a15>
etsy-access-token etsy <a24>
facebook-secret facebook <h32>
fastly-api-token fastly <e32>
finicity-api-token finicity <h32>
finicity-client-secret finicity <a20>
finnhub-access-token finnhub <a20>
flickr-access-token flickr <a32>
freshbooks-access-token freshbooks <a64>
gitter-access-token gitter <e40>
heroku-api-key heroku <u>
hubspot-api-key hubspot <u>
intercom-api-key intercom <e60>
jfrog-api-key jfrog <a73>
jfrog-identity-token artifactory <a64>
kraken-access-token kraken <e84>
kucoin-access-token kucoin <h24>
kucoin-secret-key kucoin <u>
launchdarkly-access-token launchdarkly <e40>
linear-client-secret linear <h32>
linkedin-client-id linkedin <a14>
linkedin-client-secret linkedin <a16>
lob-api-key lob_api live_<h35>
lob-pub-api-key lob_api test_pub_<h31>
looker-client-id looker <a20>
looker-client-secret looker <a24>
mailchimp-api-key mailchimp <h32>-us20
mailgun-private-api-token mailgun key-<h32>
mailgun-pub-key mailgun pubkey-<h32>
mailgun-signing-key mailgun <h32>-<h8>-<h8>
mattermost-access-token mattermost <a26>
messagebird-api-token messagebird <a25>
messagebird-client-id message-bird <u>
netlify-access-token netlify <e43>
new-relic-user-api-id new-relic <a64>
nytimes-access-token nytimes <e32>
okta-access-token okta 00<m40>
plaid-client-id plaid <a24>
plaid-secret-key plaid <a30>
privateai-api-token private_ai <a32>
rapidapi-access-token rapidapi <e50>
sendbird-access-id sendbird <u>
sendbird-access-token sendbird <h40>
sentry-access-token sentry <h64>
snyk-api-token snyk <u>
sonar-api-token sonar <e40>
sourcegraph-access-token sourcegraph <h40>
squarespace-access-token squarespace <u>
sumologic-access-id sumo su<m11>7
sumologic-access-token sumo <a64>
telegram-bot-api-token telegram <d10>:A<m34>
travisci-access-token travis <a22>
twitch-api-token twitch <a30>
twitter-access-secret twitter <a45>
twitter-access-token twitter <d18>-<m40>
twitter-api-key twitter <a25>
twitter-api-secret twitter <a50>
zendesk-secret-key zendesk <a40>
"""

WRITTEN = (
    '{name}_token = "{value}"',
    "{name}_SECRET_KEY='{value}'",
    "{name}ApiKey: {value}",
    '"{name}_key": "{value}",',
    '{name}_token := "{value}"',
    'client["{name}_token"] = "{value}"',
    "  {name}-client-secret => '{value}'",
    "<{name}Token>{value}</{name}Token>",
    "export {name}_TOKEN={value}",
    '{name}_token ||= "{value}"',
    'System.setProperty("{name}.token", "{value}")',
)

SECRETS = rule("(m: Message)", "any(secrets(m))", head="from invariant.detectors import secrets")
WITHOUT_GENERIC = rule("(m: Message)", "any(secrets(m, generic=False))", head="from invariant.detectors import secrets")


def made(written: str, seed: int) -> str:
    """A secret of this format."""
    source = random.Random(f"{written}{seed}")

    def part(found: re.Match[str]) -> str:
        if found[0] == "<u>":
            return str(uuid.UUID(int=source.getrandbits(128), version=4))
        return "".join(source.choices(ALPHABETS[found[1]], k=int(found[2])))

    return re.sub(r"<(?:u|([aAmhdlebq])(\d+))>", part, written).replace("\\n", "\n")


@pytest.mark.parametrize("line", FORMS.strip().splitlines())
def test_forms(line: str) -> None:
    """Ten random secrets of a kind, in the middle of a sentence and at its end."""
    kind, _, written = line.partition(" ")
    for seed in range(10):
        secret = made(written, seed)
        assert fires(WITHOUT_GENERIC, user(f"the key is {secret} ok?")), (kind, secret)
        assert fires(WITHOUT_GENERIC, user(f"the key is: {secret}")), (kind, secret)


@pytest.mark.parametrize("line", ASSIGNED.strip().splitlines())
def test_values_with_a_name(line: str) -> None:
    """Written as in a dozen languages; by itself the value is nothing that anybody knows."""
    kind, name, written = line.split(" ")
    for seed, form in enumerate(WRITTEN):
        text = form.format(name=name, value=made(written, seed))
        assert fires(WITHOUT_GENERIC, user(text)), (kind, text)


@pytest.mark.parametrize(
    "text",
    [
        'password = "hG7$kq29LmZx81Qw"',
        "DB_PASSWORD=hG7kq29LmZx81Qw4",
        "export SERVICE_TOKEN=8f14e45fceea167a5a36dedd4bea2543",
        '{"api_key": "zT81qLm29xKd73Rb"}',
        "secret_key: 'zT81qLm29xKd73Rb'",
    ],
)
def test_values_of_no_vendor(text: str) -> None:
    assert fires(SECRETS, user(text)) and not fires(WITHOUT_GENERIC, user(text))


@pytest.mark.parametrize(
    "text",
    [
        'password = "correct horse battery"',
        "password: see the vault",
        'api_key = os.environ["TWITTER_API_KEY"]',
        "twitter_api_key = get_twitter_api_key()",
        "https://user:password@example.com/",
        "postgresql://user:$PASSWORD@host/db",
        "Authorization: Bearer <token>",
        "Authorization: Bearer YOUR_API_KEY_GOES_HERE",
        "curl -u user: https://example.com",
        "the linear regression: y = 2x + 12345678",
        "discord: see you at 10:30, channel = general-discussion-2",
        "commit 8f14e45fceea167a5a36dedd4bea2543aa11bb22",
        "id: 123e4567-e89b-42d3-a456-426614174000",
        "sk_buff, xoxo and glance-at",
        "data: {kind: secretary}",
    ],
)
def test_what_is_no_secret(text: str) -> None:
    assert not fires(SECRETS, user(text)), text


@pytest.mark.parametrize("written", ['twitter_token = "<m40>"', "AWS_SECRET_ACCESS_KEY=<b40>", "API_TOKEN=<m40>"])
def test_a_growing_text_keeps_what_was_found(written: str) -> None:
    """What is found in the first part of a text is found in the whole: streams are ended by it."""
    text = made(written, 0) + "=more: and, more"
    found = [fires(SECRETS, user(text[:end])) for end in range(len(text) + 1)]
    assert found[-1] and found == sorted(found)
