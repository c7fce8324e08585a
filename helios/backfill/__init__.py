"""Files of klines into the table: each once, exactly, and never half.

`load(engine, recognise(path))` loads one file in one transaction and returns a Report. Memory does not grow with the
file; the same file again writes nothing, a corrected one only the rows that differ.
"""

from helios.backfill.loading import load
from helios.backfill.report import Gap, Mode, Progress, Report, Stage
from helios.backfill.source import Source, recognise

__all__ = ["Gap", "Mode", "Progress", "Report", "Source", "Stage", "load", "recognise"]
