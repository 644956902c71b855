"""Conditions and ranges of RFC 9110."""

from __future__ import annotations

import pytest

from deltapack.virtual.requests import Answer, parts_of, wanted

TAG = '"abc"'


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("bytes=0-0", Answer(206, 0, 1)),
        ("bytes=2-", Answer(206, 2, 10)),
        ("bytes=-3", Answer(206, 7, 10)),
        ("bytes=-30", Answer(206, 0, 10)),
        ("bytes=5-99", Answer(206, 5, 10)),
        ("bytes= 5 - 6", Answer(206, 5, 7)),
        ("bytes=10-", Answer(416)),
        ("bytes=-0", Answer(416)),
        ("bytes=9999999999999999999-", Answer(416)),
        *((text, Answer(200, 0, 10)) for text in ("", "bytes=-", "bytes=3-2", "bytes=0-1,3-4", "items=0-1", "bytes=a-b", "bytes=1")),
        ("bytes=" + "9" * 30 + "-", Answer(200, 0, 10)),
    ],
)
def test_ranges(text: str, answer: Answer) -> None:
    assert wanted({"Range": text}, 10, TAG) == answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": TAG}, 304),
        ({"If-None-Match": f'"x", W/{TAG}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-None-Match": '"abc'}, 200),
        ({"If-None-Match": TAG, "Range": "bytes=0-1"}, 304),
        ({"If-Match": '"x"'}, 412),
        ({"If-Match": f"W/{TAG}"}, 412),
        ({"If-Match": f'"x", {TAG}', "Range": "bytes=0-1"}, 206),
        ({"If-Match": "*"}, 200),
        ({"If-Range": TAG, "Range": "bytes=0-1"}, 206),
        ({"If-Range": '"x"', "Range": "bytes=0-1"}, 200),
        ({"If-Range": f"W/{TAG}", "Range": "bytes=0-1"}, 200),
        ({"If-Range": "Fri, 27 Nov 2026 00:00:00 GMT", "Range": "bytes=0-1"}, 200),
    ],
)
def test_conditions(headers: dict[str, str], status: int) -> None:
    assert wanted(headers, 10, TAG).status == status


def test_an_empty_file() -> None:
    assert wanted({}, 0, TAG) == Answer(200, 0, 0)
    assert wanted({"Range": "bytes=0-"}, 0, TAG).status == 416


@pytest.mark.parametrize(
    "path", ["/..", "/a/../b", "/./a", "/a%2fb", "/a%5cb", "/%00", "/%2e%2e/x", "/a//b", "a/b", "", "/%ff", "/a%0d%0ab"]
)
def test_paths_that_lead_elsewhere(path: str) -> None:
    assert parts_of(path) is None
