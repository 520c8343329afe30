"""Steps of several instances as one table."""

from __future__ import annotations

import numpy as np
import pytest

from traces.steps import Steps, merged_steps, steps_from_columns


def steps(instance: int, ends_s: list[float]) -> Steps:
    columns: dict[str, object] = {
        name: range(len(ends_s))
        for name in (
            "n_requests",
            "n_prefill_tokens",
            "n_decode_tokens",
            "n_preempted",
            "n_running",
            "n_waiting",
            "kv_blocks",
            "kv_cached",
        )
    }
    return steps_from_columns({**columns, "instance": [instance] * len(ends_s), "scheduled_s": ends_s, "end_s": ends_s})


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_they_are_in_order_of_end_and_of_instance_where_ends_are_equal(order: tuple[int, ...]) -> None:
    each = [steps(0, [1.0, 2.0, 5.0]), steps(1, [0.5, 2.0, 2.5]), steps(2, [2.0, 5.0])]
    merged = merged_steps([each[i] for i in order])
    assert merged.end_s.tolist() == [0.5, 1.0, 2.0, 2.0, 2.0, 2.5, 5.0, 5.0]
    assert merged.instance.tolist() == [1, 0, 0, 1, 2, 1, 0, 2]
    assert merged.kv_blocks.tolist() == [0, 0, 1, 1, 0, 2, 2, 1]
    np.testing.assert_array_equal(merged.kv_cached, merged.kv_blocks)
