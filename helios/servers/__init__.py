"""PostgreSQL and Valkey for development and tests: started when needed, shared, gone with their last user.

Every process that uses a server holds a shared lock on its lease, which the kernel frees however the process ends; a
small supervisor ends the server when it gets that lock for itself. Nothing depends on process numbers or on anybody's
good manners.
"""

from helios.servers.embedded import Available, Status, available, database_url, down, redis_url, status, up
from helios.servers.postgres import Postgres
from helios.servers.valkey import Valkey

__all__ = [
    "Available",
    "Postgres",
    "Status",
    "Valkey",
    "available",
    "database_url",
    "down",
    "redis_url",
    "status",
    "up",
]
