"""JSON as the package reads it: whatever is JSON, Python's own writer being asked."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from mobizo_kernels.files import strict_json


@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_is_what_json_says(value: object) -> None:
    assert strict_json.loads(json.dumps(value)) == value
