"""Klines moved to what holds more of them, and back: partitions, a hypertable of TimescaleDB, or shards of Citus.

`plan` looks and refuses, `convert` does it beside trading: what is there is copied in batches while it is noted what
changes, every batch is compared, and under a brief lock the copy takes the place of the table.
"""

from helios.growing.converting import Progress, Stage, convert
from helios.growing.planning import DEFAULT_CHUNK, Plan, plan
from helios.layout import Layout

__all__ = ["DEFAULT_CHUNK", "Layout", "Plan", "Progress", "Stage", "convert", "plan"]
