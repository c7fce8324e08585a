"""A service of its own process: feeds the messages of a file, and says how many are in after each."""

import json
import sys
from pathlib import Path

from sqlalchemy import create_engine

from helios.feed import Feed

if __name__ == "__main__":
    url, account, path = sys.argv[1:]
    feed = Feed(create_engine(url), account=account)
    for number, message in enumerate(json.loads(Path(path).read_text()), start=1):
        feed.take(message)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
