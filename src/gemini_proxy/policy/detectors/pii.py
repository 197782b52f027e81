"""Find personal data with a form that can be checked, under the names of Presidio: ``pii``.

``pii(x)`` finds unmistakable forms. ``pii(x, entities=["US_PASSPORT"])`` finds the named forms, bare numbers included.
``pii(x, countries=["US"])`` adds the numbers of a country. Names and places need a model: ``pii(x, model="presidio")``
asks Presidio itself. Without it a policy may name them, but nothing is found: a warning says so when the policy loads.
"""

import re
from calendar import monthrange
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, Final

from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.detectors.disguises import Disguises
from gemini_proxy.policy.detectors.forms import Form, Forms
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.budget import Meter

_IBAN_LENGTHS = (15, 34)


def _digits(found: str) -> list[int]:
    return [int(char) for char in found if char.isdigit()]


def _luhn(digits: Sequence[int]) -> bool:
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def passes_luhn(found: str) -> bool:
    """Check the check digit of payment cards (ISO/IEC 7812-1 annex B)."""
    digits = _digits(found)
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    return _luhn(digits)


def is_iban(found: str) -> bool:
    """Check the check digits of an IBAN (ISO 13616: the rearranged number is 1 modulo 97)."""
    plain = re.sub(r"[ -]", "", found)
    if not _IBAN_LENGTHS[0] <= len(plain) <= _IBAN_LENGTHS[1]:
        return False
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def _is_ssn(found: str) -> bool:
    area, group, serial = found.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _is_phone(found: str) -> bool:
    return 8 <= sum(char.isdigit() for char in found) <= 15


def _is_ip4(found: str) -> bool:
    try:
        IPv4Address(found)
    except AddressValueError:
        return False
    return True


def _is_ip6(found: str) -> bool:
    try:
        IPv6Address(found)
    except AddressValueError:
        return False
    return len(found) > 4


def _weighted(digits: Sequence[int], weights: Sequence[int]) -> int:
    return sum(digit * weight for digit, weight in zip(digits, weights, strict=False))


def _is_crypto(found: str) -> bool:
    """Check a Bitcoin address: base 58 with a double SHA-256, or Bech32 (BIP 173, BIP 350)."""
    return _is_bech32(found) if found.startswith("bc1") else _is_base58(found)


def _is_base58(found: str) -> bool:
    number = 0
    for char in found:
        number = number * 58 + _BASE58.index(char)
    if number.bit_length() > 200:
        return False
    data = number.to_bytes(25, "big")
    return sha256(sha256(data[:-4]).digest()).digest()[:4] == data[-4:]


def _is_bech32(found: str) -> bool:
    checksum = 1
    values = [3, 3, 0, 2, 3, *(_BECH32.index(char) for char in found[3:])]
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            checksum ^= generator if top >> bit & 1 else 0
    return checksum in (1, 0x2BC830A3)


def _is_date(year: int, month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= monthrange(year, month)[1]


def _is_itin(found: str) -> bool:
    group = int(re.sub(r"[ -]", "", found)[3:5])
    return 50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99


def _is_routing_number(found: str) -> bool:
    """Check a number of the American Bankers Association (weights 3, 7, 1)."""
    digits = _digits(found)
    return any(digits) and _weighted(digits, (3, 7, 1) * 3) % 10 == 0


def _is_npi(found: str) -> bool:
    """Check the Luhn digit after the prefix of health care providers in the United States."""
    return len(set(found)) > 1 and _luhn([8, 0, 8, 4, 0, *_digits(found)])


def _is_dea(found: str) -> bool:
    digits = _digits(found)[-7:]
    return (sum(digits[0:6:2]) + 2 * sum(digits[1:6:2])) % 10 == digits[6]


def _is_nhs(found: str) -> bool:
    digits = _digits(found)
    return len(set(digits)) > 1 and _weighted(digits, range(10, 0, -1)) % 11 == 0


def _is_nino(found: str) -> bool:
    return found[:2].upper() not in ("BG", "GB", "NK", "KN", "NT", "TN", "ZZ")


def _is_uk_licence(found: str) -> bool:
    """Five letters, the decade, month (plus 50 for women), day and year of birth, initials, check characters."""
    month, day = int(found[6:8]) % 50, int(found[8:10])
    return _is_date(2000, month, day)


def _is_sin(found: str) -> bool:
    return _luhn(_digits(found))


def _is_abn(found: str) -> bool:
    first, *rest = _digits(found)
    return _weighted([first - 1, *rest], (10, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19)) % 89 == 0


def _is_acn(found: str) -> bool:
    digits = _digits(found)
    return (10 - _weighted(digits, range(8, 0, -1)) % 10) % 10 == digits[8]


def _is_tfn(found: str) -> bool:
    return _weighted(_digits(found), (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def _is_medicare(found: str) -> bool:
    digits = _digits(found)
    return _weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9)) % 10 == digits[8]


def _is_mod_11_10(digits: Sequence[int]) -> bool:
    """ISO/IEC 7064, MOD 11,10."""
    product = 10
    for digit in digits[:-1]:
        product = ((digit + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == digits[-1]


def _is_german_tax_id(found: str) -> bool:
    """Check that one of the first ten digits stands there two or three times, but not three in a row."""
    digits = _digits(found)
    most = max(Counter(digits[:10]).values())
    return most in (2, 3) and not re.search(r"(\d)\1\1", found[:10]) and _is_mod_11_10(digits)


def _is_german_vat_id(found: str) -> bool:
    return _is_mod_11_10(_digits(found))


def _is_german_document(found: str) -> bool:
    """Weights 7, 3, 1 over digits and letters (A is 10), as ICAO 9303 has it; without the check digit all do."""
    if len(found) < 10:
        return any(char.isdigit() for char in found)
    return _weighted([int(char, 36) for char in found[:9]], (7, 3, 1) * 3) % 10 == int(found[9])


def _is_german_social_security(found: str) -> bool:
    """Area, date of birth, letter, serial number, check digit; the sums of digits of the products count."""
    plain = found.replace(" ", "")
    letter = f"{ord(plain[8].upper()) - 64:02}"
    digits = _digits(plain[:8] + letter + plain[9:11])
    products = (digit * weight for digit, weight in zip(digits, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=True))
    return sum(sum(divmod(product, 10)) for product in products) % 10 == int(plain[11])


def _is_nif(found: str) -> bool:
    plain = found.replace("-", "")
    return _NIF[int(plain[:-1]) % 23] == plain[-1].upper()


def _is_nie(found: str) -> bool:
    plain = found.replace("-", "").upper()
    return _NIF[int(str("XYZ".index(plain[0])) + plain[1:-1]) % 23] == plain[-1]


def _is_fiscal_code(found: str) -> bool:
    """Check an Italian code; its values at odd places are a table of the decree of 12 March 1974."""
    plain = found.upper()
    odd = sum(_ODD[int(char, 36) - 10 if char.isalpha() else int(char)] for char in plain[0:15:2])
    even = sum(int(char, 36) - 10 if char.isalpha() else int(char) for char in plain[1:15:2])
    return chr(65 + (odd + even) % 26) == plain[15]


def _is_pesel(found: str) -> bool:
    """Check a Polish number. The month has the century: 20 more from 2000 on, 80 more before 1900."""
    digits = _digits(found)
    month = int(found[2:4])
    century = {4: 1800, 0: 1900, 1: 2000, 2: 2100, 3: 2200}[month // 20]
    dated = _is_date(century + int(found[:2]), month % 20, int(found[4:6]))
    return dated and (10 - _weighted(digits[:10], (1, 3, 7, 9) * 3) % 10) % 10 == digits[10]


def _is_finnish(found: str) -> bool:
    year = {"+": 1800, "-": 1900}.get(found[6], 1900 if found[6].upper() in "YXWVU" else 2000) + int(found[4:6])
    dated = _is_date(year, int(found[2:4]), int(found[:2]))
    return dated and _FINNISH[int(found[:6] + found[7:10]) % 31] == found[10].upper()


def _is_swedish(found: str) -> bool:
    digits = _digits(found)[-10:]
    day = digits[4] * 10 + digits[5]
    month = digits[2] * 10 + digits[3]
    return _is_date(2000, month, day - 60 * (day > 60)) and _luhn(digits)


def _is_aadhaar(found: str) -> bool:
    """Check the Verhoeff digit; numbers that read the same backwards are not issued."""
    digits = _digits(found)
    checksum = 0
    for place, digit in enumerate(reversed(digits)):
        checksum = _VERHOEFF[checksum][_PERMUTED[place % 8][digit]]
    return checksum == 0 and digits != digits[::-1]


def _is_gstin(found: str) -> bool:
    """State, PAN, entity, Z, and a check character to base 36."""
    values = [int(char, 36) for char in found.upper()]
    products = [value * (1 + place % 2) for place, value in enumerate(values[:14])]
    return 1 <= int(found[:2]) <= 38 and (36 - sum(sum(divmod(each, 36)) for each in products) % 36) % 36 == values[14]


def _is_korean(found: str) -> bool:
    """Numbers given since October 2020 have no check digit that can be told from the others."""
    digits = _digits(found)
    month, day = digits[2] * 10 + digits[3], digits[4] * 10 + digits[5]
    checked = (11 - _weighted(digits[:12], (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)) % 11) % 10 == digits[12]
    return _is_date(2000, month, day) and (checked or found[:2] >= "20")


def _is_thai(found: str) -> bool:
    digits = _digits(found)
    return (11 - _weighted(digits[:12], range(13, 1, -1)) % 11) % 10 == digits[12]


def _is_turkish(found: str) -> bool:
    digits = _digits(found)
    tenth = (7 * sum(digits[0:9:2]) - sum(digits[1:8:2])) % 10
    return tenth == digits[9] and sum(digits[:10]) % 10 == digits[10]


def _is_south_african(found: str) -> bool:
    return _is_date(2000, int(found[2:4]), int(found[4:6])) and _luhn(_digits(found))


def _is_day(found: str) -> bool:
    """Return whether some order of year, month and day makes a date."""
    parts = [int(part) for part in re.findall(r"\d+", found)[:3]]
    if len(parts) < 3:
        return True
    orders = (parts, [parts[2], parts[1], parts[0]], [parts[2], parts[0], parts[1]])
    return any(year > 0 and _is_date(year, month, day) for year, month, day in orders)


_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_NIF: Final = "TRWAGMYFPDXBNJZSQVHLCKE"
_FINNISH: Final = "0123456789ABCDEFHJKLMNPRSTUVWXY"
_ODD: Final = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
_VERHOEFF: Final = tuple(
    tuple(
        (one + other) % 5 + 5 * (other > 4) if one < 5 else (one - other) % 5 + 5 * (other < 5) for other in range(10)
    )
    for one in range(10)
)
_PERMUTED: Final = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 5, 7, 6, 2, 8, 3, 0, 9, 4), (5, 8, 0, 3, 7, 9, 6, 1, 4, 2),
    (8, 9, 1, 6, 0, 4, 3, 5, 2, 7), (9, 4, 5, 3, 1, 2, 6, 8, 7, 0), (4, 2, 8, 6, 5, 7, 3, 9, 0, 1),
    (2, 7, 9, 3, 8, 0, 6, 4, 1, 5), (7, 0, 4, 6, 9, 1, 3, 2, 5, 8),
)  # fmt: skip
_MONTH: Final = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}"
_MBI: Final = "AC-HJKMNP-RT-Y"

# Unmistakable forms.
_DISTINCT: Final = (
    Form("EMAIL_ADDRESS", r"[\w.!#$%&'*+/=?^`{|}~-]+@(?:[\w-]+[.])+\pL\pL+"),
    Form("PHONE_NUMBER", r"[+][1-9][0-9 ().-]{6,20}[0-9]", accept=_is_phone),
    Form("PHONE_NUMBER", r"[(]?\b[2-9][0-9]{2}[)]?[ .-][2-9][0-9]{2}[ .-][0-9]{4}\b", accept=_is_phone),
    Form("CREDIT_CARD", r"\b[3-6][0-9]{3}(?:[ -]?[0-9]){9,15}\b", accept=passes_luhn),
    Form("IBAN_CODE", r"\b[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]{1,4}){3,8}\b", accept=is_iban),
    Form("US_SSN", r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b", accept=_is_ssn),
    Form("IP_ADDRESS", r"\b[0-9]{1,3}(?:[.][0-9]{1,3}){3}\b", accept=_is_ip4),
    Form("IP_ADDRESS", r"(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}\b", accept=_is_ip6),
)
# Forms that other texts have too: found only if a policy asks for them.
_ON_REQUEST: Final = (
    Form("CRYPTO", r"\bbc1[02-9ac-hj-np-z]{39,59}\b|\b[13][1-9A-HJ-NP-Za-km-z]{25,34}\b", accept=_is_crypto),
    Form("DATE_TIME", r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.][0-9]+)?)?"
         r"(?:Z|[+-][0-9]{2}:?[0-9]{2})?\b", accept=_is_day),
    Form("DATE_TIME", r"\b[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}\b", accept=_is_day),
    Form("DATE_TIME", r"\b[0-9]{1,2}[-/.][0-9]{1,2}[-/.](?:[0-9]{4}|[0-9]{2})\b", accept=_is_day),
    Form("DATE_TIME", rf"(?i)\b[0-9]{{1,2}}(?:st|nd|rd|th)?[ -]{_MONTH}(?:[ ,-]{{1,2}}[0-9]{{2,4}})?\b"),
    Form("DATE_TIME", rf"(?i)\b{_MONTH}[ -](?:[0-9]{{1,2}}(?:st|nd|rd|th)?(?:,? [0-9]{{4}})?|[0-9]{{4}})\b"),
    Form("DATE_TIME", r"\b(?:0[1-9]|1[0-2])/[0-9]{4}\b"),
    Form("MAC_ADDRESS", r"(?i)\b[0-9a-f]{2}(?:(?::[0-9a-f]{2}){5}|(?:-[0-9a-f]{2}){5})\b"
         r"|\b[0-9a-f]{4}[.][0-9a-f]{4}[.][0-9a-f]{4}\b"),
    Form("URL", r"(?i)\b(?:https?|ftp)://[^ \t\r\n<>\"]+[^ \t\r\n<>\".,;:!?)'\]]"),
    Form("URL", r"(?i)\b(?:www[.])?(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?[.])+"
         r"(?:com|org|net|edu|gov|io|co|ai|app|dev|info|biz|eu|uk|de|fr|it|es|nl|pl|se|fi|ch|at|il|in|jp|cn|us|ca|au|br)"
         r"\b(?:/[^ \t\r\n<>\"]*[^ \t\r\n<>\".,;:!?)'\]])?"),
    Form("US_ITIN", r"\b9[0-9]{2}[- ]?[5-9][0-9][- ]?[0-9]{4}\b", accept=_is_itin),
    Form("US_SSN", r"\b[0-9]{3}[ .][0-9]{2}[ .][0-9]{4}\b",
         accept=lambda found: _is_ssn(re.sub("[ .]", "-", found))),
    Form("US_PASSPORT", r"\b(?:[0-9]{9}|[A-Z][0-9]{8})\b"),
    Form("US_DRIVER_LICENSE", r"\b(?:[A-Z][0-9]{1,14}|[A-Z][0-9]{18}|[A-Z][0-9]{6}R|[A-Z]{2}[0-9]{2,7}"
         r"|[0-9]{2}[A-Z]{3}[0-9]{5,6}|[0-9]{9}[A-Z]|[A-Z]{2}[0-9]{6}[A-Z]|[0-9]{8}[A-Z]{2}"
         r"|[0-9]{3}[A-Z]{2}[0-9]{4}|[A-Z][0-9][A-Z][0-9][A-Z]|[0-9]{7,8}[A-Z]|[0-9]{6,14}|[0-9]{16})\b"),
    Form("US_BANK_NUMBER", r"\b[0-9]{8,17}\b"),
    Form("ABA_ROUTING_NUMBER", r"\b[0123678][0-9]{3}-?[0-9]{4}-?[0-9]\b", accept=_is_routing_number),
    Form("US_NPI", r"\b[12][0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{3}\b", accept=_is_npi),
    Form("US_MBI", rf"\b[1-9][{_MBI}][{_MBI}0-9][0-9]-?[{_MBI}][{_MBI}0-9][0-9]-?[{_MBI}]{{2}}[0-9]{{2}}\b"),
    Form("MEDICAL_LICENSE", r"(?i)\b[abcdefghjklmprstux][a-z9][0-9]{7}\b", accept=_is_dea),
    Form("UK_NHS", r"\b[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}\b", accept=_is_nhs),
    Form("UK_NINO", r"(?i)\b[a-ceghj-prstw-z][a-ceghj-nprstw-z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[a-d]\b",
         accept=_is_nino),
    Form("UK_PASSPORT", r"\b[A-Z]{2}[0-9]{7}\b"),
    Form("UK_DRIVING_LICENCE",
         r"\b[A-Z]{1,5}9{0,4}[0-9](?:[05][1-9]|[16][0-2])[0-3][0-9]{2}[A-Z9]{2}[A-Z0-9][A-Z]{2}\b",
         accept=lambda found: len(found) == 16 and _is_uk_licence(found)),
    Form("CA_SIN", r"\b[1-79][0-9]{2}[- ]?[0-9]{3}[- ]?[0-9]{3}\b|\b0[0-9]{2}[- ][0-9]{3}[- ][0-9]{3}\b",
         accept=_is_sin),
    Form("AU_ABN", r"\b[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}\b", accept=_is_abn),
    Form("AU_ACN", r"\b[0-9]{3} ?[0-9]{3} ?[0-9]{3}\b", accept=_is_acn),
    Form("AU_TFN", r"\b[0-9]{3} ?[0-9]{3} ?[0-9]{3}\b", accept=_is_tfn),
    Form("AU_MEDICARE", r"\b[2-6][0-9]{3} ?[0-9]{5} ?[0-9]\b", accept=_is_medicare),
    Form("DE_TAX_ID", r"\b[1-9][0-9]{10}\b", accept=_is_german_tax_id),
    Form("DE_VAT_ID", r"(?i)\bDE ?[1-9][0-9]{2} ?[0-9]{3} ?[0-9]{3}\b", accept=_is_german_vat_id),
    Form("DE_PASSPORT", r"\b[CFGHJK][CFGHJKLMNPRTVWXYZ0-9]{8}[0-9]?\b", accept=_is_german_document),
    Form("DE_ID_CARD", r"\b[LMNPRTVWXYZ][CFGHJKLMNPRTVWXYZ0-9]{8}[0-9]?\b", accept=_is_german_document),
    Form("DE_SOCIAL_SECURITY", r"(?i)\b[0-9]{2} ?[0-3][0-9][01][0-9]{3} ?[a-z] ?[0-9]{3}\b",
         accept=_is_german_social_security),
    Form("ES_NIF", r"(?i)\b[0-9]{7,8}-?[a-hj-np-tv-z]\b", accept=_is_nif),
    Form("ES_NIE", r"(?i)\b[xyz]-?[0-9]{7,8}-?[a-hj-np-tv-z]\b", accept=_is_nie),
    Form("IT_FISCAL_CODE", r"(?i)\b[a-z]{6}[0-9l-nqp-v]{2}[a-ehlmprst][0-9l-nqp-v]{2}[a-z][0-9l-nqp-v]{3}[a-z]\b",
         accept=_is_fiscal_code),
    Form("IT_PASSPORT", r"(?i)\b[a-z]{2}[0-9]{7}\b"),
    Form("PL_PESEL", r"\b[0-9]{2}[0-9][0-9][0-3][0-9]{6}\b", accept=_is_pesel),
    Form("FI_PERSONAL_IDENTITY_CODE", r"(?i)\b[0-3][0-9][01][0-9]{3}[+a-fyxwvu-][0-9]{3}[0-9a-fhj-npr-y]\b",
         accept=_is_finnish),
    Form("SE_PERSONNUMMER", r"\b(?:19|20)?[0-9]{2}[01][0-9]{3}[-+]?[0-9]{4}\b", accept=_is_swedish),
    Form("IN_AADHAAR", r"\b[2-9][0-9]{3}[- :]?[0-9]{4}[- :]?[0-9]{4}\b", accept=_is_aadhaar),
    Form("IN_PAN", r"(?i)\b[a-z]{3}[abcfghljpt][a-z][0-9]{4}[a-z]\b"),
    Form("IN_GSTIN", r"(?i)\b[0-3][0-9][a-z]{5}[0-9]{4}[a-z][1-9a-z]z[0-9a-z]\b", accept=_is_gstin),
    Form("KR_RRN", r"\b[0-9]{2}[01][0-9][0-3][0-9]-?[1-8][0-9]{6}\b", accept=_is_korean),
    Form("SG_NRIC_FIN", r"(?i)\b[stfgm][0-9]{7}[a-z]\b"),
    Form("TH_TNIN", r"\b[1-8]-?[0-9]{4}-?[0-9]{5}-?[0-9]{2}-?[0-9]\b", accept=_is_thai),
    Form("TR_NATIONAL_ID", r"\b[1-9][0-9]{10}\b", accept=_is_turkish),
    Form("ZA_ID_NUMBER", r"\b[0-9]{2}[01][0-9][0-3][0-9][0-9]{4}[01][0-9]{2}\b", accept=_is_south_african),
)  # fmt: skip
_BY_ENTITY: Final = {
    entity: Forms(rule for rule in (*_DISTINCT, *_ON_REQUEST) if rule.label == entity)
    for entity in sorted({rule.label for rule in (*_DISTINCT, *_ON_REQUEST)})
}
ENTITIES: Final = frozenset(_BY_ENTITY)
_ALL: Final = Forms(_DISTINCT)
_DISGUISES: Final = Disguises()
_COUNTRIES: Final[Mapping[str, frozenset[str]]] = {
    country: frozenset(entity for entity in ENTITIES if entity.startswith(f"{country}_"))
    | ({"ABA_ROUTING_NUMBER", "MEDICAL_LICENSE"} if country == "US" else frozenset())
    for country in sorted({entity[:2] for entity in ENTITIES if entity[2] == "_"})
}
# Presidio's other names in the stock engine: a language model or a country's rules find them, and nothing here does.
NOT_FOUND: Final = frozenset(
    (
        "PERSON", "LOCATION", "NRP", "ORGANIZATION", "IT_DRIVER_LICENSE", "IT_VAT_CODE", "IT_IDENTITY_CARD", "SG_UEN",
        "IN_VEHICLE_REGISTRATION", "IN_VOTER", "IN_PASSPORT",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PiiDetector:
    """Labels are entity names in the spelling of Presidio."""

    name: str = "pii"
    options: frozenset[str] = frozenset(("entities", "countries", "raw"))
    positional: tuple[str, ...] = ("entities",)
    entities: frozenset[str] = ENTITIES
    labels: frozenset[str] = _ALL.labels
    not_found: frozenset[str] = NOT_FOUND
    models: frozenset[str] = frozenset(("presidio",))

    def detect(self, texts: Sequence[str], options: Mapping[str, Any], meter: Meter) -> Iterable[Finding]:
        """Raise EvaluationError for what nobody knows: a misspelled name would never be found."""
        entities, countries = _names(options.get("entities")), _names(options.get("countries"))
        _refuse(entities - ENTITIES - NOT_FOUND)
        _refuse(countries - _COUNTRIES.keys())
        wanted = (entities & ENTITIES).union(*(_COUNTRIES[country] for country in countries))
        rest = wanted - _ALL.labels if options.get("entities") is None else wanted
        sets = [*([_ALL] if options.get("entities") is None else ()), *(_BY_ENTITY[name] for name in sorted(rest))]

        def find(texts: Sequence[str], meter: Meter) -> list[Finding]:
            return [found for rules in sets for found in rules.find(texts, meter)]

        return find(texts, meter) if options.get("raw") else _DISGUISES.find(find, texts, meter)


def _names(option: Any) -> set[str]:
    return set() if option is None else {option} if isinstance(option, str) else set(option)


def _refuse(unknown: set[str]) -> None:
    if unknown:
        raise EvaluationError(f"pii does not know {', '.join(map(str, sorted(unknown)))}")
