"""Personal data by kind: numbers that offices and standards print as examples, and the same with a wrong digit."""

import pytest

from gemini_proxy.policy import compile_policy
from tests.policy.test_policy_detectors import labels

VALID = """
CRYPTO 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa
CRYPTO 3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy
CRYPTO bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq
DATE_TIME 2024-02-29
DATE_TIME 29.02.2024
DATE_TIME 12/31/99
DATE_TIME 2024-05-01T12:30:00Z
DATE_TIME 1st May 2024
DATE_TIME 21-Aug-2023
DATE_TIME August 21, 2023
DATE_TIME 10/2025
MAC_ADDRESS 00:1A:2B:3C:4D:5E
MAC_ADDRESS 00-1a-2b-3c-4d-5e
MAC_ADDRESS 001a.2b3c.4d5e
URL https://example.com/a?b=c
URL www.example.org
URL example.co.uk/path
US_ITIN 911-70-1234
US_ITIN 911701234
US_SSN 078-05-1121
US_SSN 078 05 1121
US_PASSPORT A12345678
US_PASSPORT 912803456
US_DRIVER_LICENSE H12234567
US_BANK_NUMBER 945456787654
ABA_ROUTING_NUMBER 021000021
ABA_ROUTING_NUMBER 3222-7162-7
US_NPI 1234567893
US_MBI 1EG4-TE5-MK73
US_MBI 1EG4TE5MK73
MEDICAL_LICENSE AB1234563
UK_NHS 943 476 5919
UK_NHS 9434765919
UK_NINO AB 12 34 56 C
UK_NINO AA123456B
UK_PASSPORT AB1234567
UK_DRIVING_LICENCE MORGA657054SM9IJ
CA_SIN 046 454 286
CA_SIN 130692544
AU_ABN 51 824 753 556
AU_ABN 51824753556
AU_ACN 004 085 616
AU_TFN 876 543 210
AU_MEDICARE 2123 45670 1
DE_TAX_ID 86095742719
DE_VAT_ID DE136695976
DE_PASSPORT C01X00T478
DE_PASSPORT C01X00T47
DE_ID_CARD T220001293
DE_ID_CARD L01X00T47
DE_SOCIAL_SECURITY 15070649C103
DE_SOCIAL_SECURITY 65 170839 J 003
ES_NIF 12345678Z
ES_NIF 12345678-Z
ES_NIE X1234567L
ES_NIE Z8078221M
IT_FISCAL_CODE RSSMRA85T10A562S
IT_PASSPORT AA1234567
PL_PESEL 44051401359
FI_PERSONAL_IDENTITY_CODE 131052-308T
SE_PERSONNUMMER 811228-9874
SE_PERSONNUMMER 19811228-9874
IN_AADHAAR 2341 2341 2346
IN_PAN ABCPE1234F
IN_GSTIN 27AAPFU0939F1ZV
SG_NRIC_FIN S1234567D
TH_TNIN 1101700230708
TR_NATIONAL_ID 10000000146
ZA_ID_NUMBER 8001015009087
KR_RRN 960121-1234568
""".strip().splitlines()

INVALID = """
CRYPTO 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb
CRYPTO bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdp
DATE_TIME 2024-02-31
DATE_TIME 99/99/9999
DATE_TIME 1.2.3.4
MAC_ADDRESS 00:1A:2B:3C:4D
MAC_ADDRESS 00:1A-2B:3C-4D:5E
URL an.example
US_ITIN 911-93-1234
US_ITIN 911-49-1234
US_SSN 000 05 1120
US_PASSPORT 1234567
US_BANK_NUMBER 1234567
ABA_ROUTING_NUMBER 021000022
US_NPI 1234567890
US_MBI 1SG4-TE5-MK73
MEDICAL_LICENSE AB1234564
UK_NHS 943 476 5918
UK_NINO BG123456A
UK_NINO QQ123456C
UK_DRIVING_LICENCE MORGA613254SM9IJ
CA_SIN 046 454 287
AU_ABN 51 824 753 557
AU_ACN 004 085 617
AU_TFN 876 543 211
AU_MEDICARE 2123 45671 1
DE_TAX_ID 86095742718
DE_TAX_ID 12345678901
DE_VAT_ID DE136695977
DE_PASSPORT C01X00T479
DE_ID_CARD T220001294
DE_SOCIAL_SECURITY 15070649C104
ES_NIF 12345678A
ES_NIE X1234567A
IT_FISCAL_CODE RSSMRA85T10A562T
PL_PESEL 44051401358
PL_PESEL 44133101359
FI_PERSONAL_IDENTITY_CODE 131052-308U
SE_PERSONNUMMER 811228-9875
IN_AADHAAR 2341 2341 2347
IN_PAN ABCXE1234F
IN_GSTIN 27AAPFU0939F1ZW
SG_NRIC_FIN A1234567D
TH_TNIN 1101700230709
TR_NATIONAL_ID 10000000147
ZA_ID_NUMBER 8001015009088
KR_RRN 961321-1234568
""".strip().splitlines()


@pytest.mark.parametrize("line", VALID)
def test_numbers_that_are_asked_for(line: str) -> None:
    """By their name, in a sentence and at its end."""
    kind, _, text = line.partition(" ")
    for sentence in (f"it is {text} .", f"it is {text}", f"({text}),"):
        assert kind in labels("pii", sentence, f', entities=["{kind}"]'), sentence


@pytest.mark.parametrize("line", INVALID)
def test_numbers_with_a_wrong_digit(line: str) -> None:
    kind, _, text = line.partition(" ")
    assert labels("pii", f"it is {text} .", f', entities=["{kind}"]') == []


def test_numbers_of_a_country() -> None:
    """Those of the countries that are named, beside what is always found."""
    text = "86095742719, 12345678Z and eve@evil.io"
    assert labels("pii", text) == ["EMAIL_ADDRESS"]
    assert labels("pii", text, ', countries=["DE"]') == ["EMAIL_ADDRESS", "DE_TAX_ID"]
    assert labels("pii", text, ', countries=["ES", "DE"], entities=[]') == ["DE_TAX_ID", "ES_NIF"]
    assert labels("pii", "021000021", ', countries="US", entities=[]')[0] == "ABA_ROUTING_NUMBER"


def test_what_is_asked_for_loads_without_a_warning() -> None:
    """And what only a model finds does not."""
    head = 'from invariant.detectors import pii\nraise "x" if:\n    (m: Message)\n'
    kinds = sorted({line.partition(" ")[0] for line in VALID})
    assert compile_policy(head + f"    any(pii(m, entities={kinds!r}))\n".replace("'", '"')).warnings == ()
    assert len(compile_policy(head + '    any(pii(m, entities=["PERSON"]))\n').warnings) == 1
