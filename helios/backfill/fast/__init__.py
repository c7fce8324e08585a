"""The same reading with numpy and pyarrow (`helios[fast]`): whole blocks become one array, and one binary COPY.

What a block's fixed digits do not hold goes the careful way of `transform`, row by row, so both give the same rows, the
same verdicts and the same report.
"""
