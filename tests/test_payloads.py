"""The corpus of hostile texts is what it says."""

import re

from payloads import PAYLOADS, SINK


def test_the_corpus_is_large_and_without_repetition():
    assert len(PAYLOADS) >= 64 and len(set(PAYLOADS.values())) == len(PAYLOADS)


def test_payloads_name_no_real_address():
    """Should one of them work, it asks a port of this machine where nothing listens."""
    addresses = re.findall(r"\w+://[^\s\"')>\\]*", "".join(PAYLOADS.values()))
    assert addresses and all(address.startswith(SINK) for address in addresses)


def test_payloads_are_text_that_can_be_stored():
    """Lone surrogates could not be: neither JSON in UTF-8 nor a tokenizer has them."""
    assert all(text.encode("utf-8").decode("utf-8") == text for text in PAYLOADS.values())
