"""A client's records and a recorder's file, joined as a replay joins them."""

from __future__ import annotations

from collections.abc import Sequence

from collectors.client.log import ClientHistory
from collectors.client.request import ClientRecord
from collectors.engine.step_file import Recording
from collectors.recording.join import Subject, Witnesses, join
from traces.capture import Capture
from traces.trace import Trace


def joined(trace: Trace, records: Sequence[ClientRecord], recordings: Sequence[Recording], subject: Subject) -> Capture:
    """The capture; second 0 is where the first record's due time puts it."""
    origin_s = records[0].due_s - trace.rows[0].arrival_s
    client = ClientHistory(origin_s, {record.request_id: record for record in records}, (), 0.0)
    return join(Witnesses(trace=trace, origin_s=origin_s, client=client, recordings=recordings), subject)
