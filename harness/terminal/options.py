"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: engine.max_num_seqs=64. Repeatable.")]
Out = Annotated[Path, typer.Option("--out", help="What to write; must not exist yet.")]
Format = Annotated[str | None, typer.Option("--format", help="Name the format instead of telling it by content.")]
