"""What people and other distributions write: a value, or an error that says what is wrong."""

from __future__ import annotations

from fuzz import texts

from .hypothesised import fuzzed


def test_any_text_is_an_endpoint_or_a_value_error():
    fuzzed(texts.endpoint)


def test_a_secret_is_never_shown():
    fuzzed(texts.secrets_hidden)


def test_any_settings_are_read_as_what_they_say_or_a_value_error():
    fuzzed(texts.settings)


def test_any_metadata_of_others_leaves_listing_and_choosing_alone():
    fuzzed(texts.metadata)
