"""What a foreign client sends as arguments is one object, or is refused in words."""

from __future__ import annotations

import uuid

import pytest

from producer.errors import InvalidJob
from workers.admission import only_argument, read_job


def test_one_positional_argument_is_the_job() -> None:
    assert only_argument(({"prompt": "a fox"},), {}) == {"prompt": "a fox"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((), {}), (({"prompt": "a"}, 7), {}), ((), {"prompt": "a"}), (({"prompt": "a"},), {"x": 1})],
    ids=["none", "two", "named", "both"],
)
def test_anything_else_is_refused_in_words(
    arguments: tuple[object, ...], named: dict[str, object]
) -> None:
    with pytest.raises(InvalidJob, match="job: must be a JSON object"):
        read_job(str(uuid.uuid4()), only_argument(arguments, named))
