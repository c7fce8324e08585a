"""The testing kit: tests that leave nothing behind in PostgreSQL and Redis."""
