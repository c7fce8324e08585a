"""The tables and their like that a schema holds, so that what a test made or changed there is named."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

# A row of pg_class gets a new version with every change of its relation's shape, but not with statistics or vacuum,
# which write in place.
RELATIONS = text("""
    SELECT relation.oid, relation.oid::regclass::text, relation.relkind::text, relation.xmin::text
    FROM pg_class AS relation
    WHERE relation.relnamespace = to_regnamespace(quote_ident(:schema)) AND relation.relkind <> 't'
""")
FINGERPRINT = text("""
    SELECT count(*) || ' ' || coalesce(sum(hashint8(oid::bigint)::bigint * 31 + xmin::text::bigint), 0)
    FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(:schema)) AND relkind <> 't'
""")
KINDS = {
    "r": "table",
    "p": "table",
    "v": "view",
    "m": "materialized view",
    "S": "sequence",
    "c": "type",
    "f": "table",
    "i": "index",
    "I": "index",
}


@dataclass(frozen=True)
class Relation:
    """One relation: its name, its kind, and the transaction that last changed its shape."""

    name: str
    kind: str
    changed: str


class Catalog:
    """What a schema held when it was last looked at."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self.connection = connection
        self.schema = schema
        self.fingerprint = self.look()
        self.relations = self.read()

    def changes(self) -> list[str]:
        """Name what was made, altered or dropped since the last look: `table orders_copy, which it made`."""
        if (now := self.look()) == self.fingerprint:
            return []
        before, self.relations, self.fingerprint = self.relations, self.read(), now
        found = []
        for oid, relation in self.relations.items():
            if oid not in before:
                found.append(f"{relation.kind} {relation.name}, which it made")
            elif before[oid].name != relation.name:
                found.append(f"{relation.kind} {before[oid].name} renamed to {relation.name}")
            elif before[oid].changed != relation.changed:
                found.append(f"{relation.kind} {relation.name} altered")
        found += [f"{gone.kind} {gone.name} dropped" for oid, gone in before.items() if oid not in self.relations]
        return sorted(found)

    def look(self) -> str:
        """Sum up the schema in one value: a fifth of a millisecond, so that every test can afford it."""
        return str(self.connection.scalar(FINGERPRINT, {"schema": self.schema}))

    def read(self) -> dict[int, Relation]:
        """Read every relation of the schema, by its oid."""
        rows = self.connection.execute(RELATIONS, {"schema": self.schema}).all()
        return {row[0]: Relation(row[1], KINDS.get(row[2], "relation"), row[3]) for row in rows}
