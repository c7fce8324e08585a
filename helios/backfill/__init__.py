"""Files of klines into the table: each once, exactly, and never half.

`load(engine, recognise(path))` loads one file in one transaction and returns a Report. Memory does not grow with the
file; the same file again writes nothing, a corrected one only the rows that differ. `load_many` loads several, over one
connection or more. With numpy and pyarrow (`helios[fast]`) files are read several times as fast, and Parquet as well.
"""

from helios.backfill.loading import Options, load
from helios.backfill.many import Outcome, load_many
from helios.backfill.report import Gap, Mode, Progress, Report, Stage
from helios.backfill.source import Source, recognise
from helios.backfill.tiers import Tier

__all__ = [
    "Gap",
    "Mode",
    "Options",
    "Outcome",
    "Progress",
    "Report",
    "Source",
    "Stage",
    "Tier",
    "load",
    "load_many",
    "recognise",
]
