"""The testing kit: what a test run wrote is taken back, in PostgreSQL and in Redis."""
