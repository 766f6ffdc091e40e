"""Queries and forms: what is taken, and the words in which the rest is refused."""

from __future__ import annotations

import pytest

from tuneproof_trainer.errors import ApiError
from tuneproof_trainer.parsing import parse, parse_file_form, parse_query
from tuneproof_trainer.requests import CreateUpload, FilesQuery, JobsQuery, ListQuery

LIFETIME = (
    "Invalid 'expires_after': Expected the anchor 'created_at' and between 3600 and 2592000 "
    "seconds."
)


def test_a_query_without_parameters_has_the_defaults() -> None:
    query = parse_query(FilesQuery, {})
    assert (query.after, query.limit, query.order, query.purpose) == (None, 10_000, "desc", None)


def test_a_query_is_read_from_text_and_what_means_nothing_is_passed_over() -> None:
    query = parse_query(JobsQuery, {"limit": "7", "after": "ftjob-1", "colour": "red"})
    assert (query.limit, query.after) == (7, "ftjob-1")


@pytest.mark.parametrize(
    ("kind", "values", "param", "code", "message"),
    [
        (
            JobsQuery,
            {"limit": "0"},
            "limit",
            "invalid_value",
            "Invalid 'limit': Expected a value between 1 and 100, but got 0.",
        ),
        (
            FilesQuery,
            {"limit": "20000"},
            "limit",
            "invalid_value",
            "Invalid 'limit': Expected a value between 1 and 10000, but got 20000.",
        ),
        (
            JobsQuery,
            {"limit": "1.0"},
            "limit",
            "invalid_type",
            "Invalid type for 'limit': expected an integer, but got '1.0'.",
        ),
        (
            FilesQuery,
            {"order": "up"},
            "order",
            "invalid_value",
            "Invalid 'order': Expected 'asc' or 'desc', but got 'up'.",
        ),
    ],
)
def test_a_bad_query_is_refused_in_words(
    kind: type[ListQuery], values: dict[str, object], param: str, code: str, message: str
) -> None:
    with pytest.raises(ApiError) as refused:
        parse_query(kind, values)
    error = refused.value
    assert (error.status, error.param, error.code) == (400, param, code)
    assert error.message == message


def test_a_form_may_say_for_how_long_its_file_stays() -> None:
    lasting = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    assert parse_file_form({"purpose": "fine-tune", **lasting}).lifetime_s == 3600
    assert parse_file_form({"purpose": "fine-tune"}).lifetime_s is None


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({}, "missing_required_parameter", "Missing required parameter: 'purpose'."),
        (
            {"purpose": "fun", "expires_after[seconds]": "1"},
            "invalid_value",
            "'fun' is not one of ['assistants', 'batch', 'fine-tune', 'vision', 'user_data', "
            "'evals'] - 'purpose'",
        ),
        ({"purpose": "evals", "expires_after[anchor]": "created_at"}, "invalid_value", LIFETIME),
        ({"purpose": "evals", "expires_after[seconds]": "3600"}, "invalid_value", LIFETIME),
        (
            {
                "purpose": "evals",
                "expires_after[anchor]": "created_at",
                "expires_after[seconds]": "5",
            },
            "invalid_value",
            LIFETIME,
        ),
    ],
)
def test_a_bad_form_is_refused_in_words(fields: dict[str, str], code: str, message: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_file_form(fields)
    assert (refused.value.code, refused.value.message) == (code, message)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"filename":"f","purpose":{},"bytes":1,"mime_type":"x"}', "invalid_value"),
        (b'{"filename":"f","purpose":[1],"bytes":1,"mime_type":"x"}', "invalid_value"),
        (
            b'{"filename":"f","purpose":"evals","bytes":0,"mime_type":"x"}',
            "integer_below_min_value",
        ),
    ],
)
def test_a_value_of_any_type_is_refused_in_words(body: bytes, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse(CreateUpload, body)
    assert refused.value.code == code
