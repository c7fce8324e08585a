"""What the mirrors hold: the values as PostgreSQL writes them, for some keys or for all.

Values are texts. A ticker, an order and a position are JSON objects with the names of the tables' columns; exact
numbers are texts in them, moments ISO 8601 in UTC. A series of klines is one candle a line, oldest first, its fields
separated by commas as in `CANDLE`; what is not told is empty. Orders and positions are fields of one hash for each
account, which also has the field `` (empty): a hash that is there without other fields says "none", one that is not
there says nothing.
"""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import Column, Integer, Table

from helios.models import OPEN_STATUSES, Account, Instrument, Interval, Kline, Order, Position, Ticker, metadata
from helios.models.base import Exact
from helios.names import quoted, table_name

NEWEST = 200  # candles of a series
# Of everything below, the newer the higher: a Helios that writes otherwise has another one, and mirrors all anew.
FORM = f"2 {NEWEST}"
CANDLE = (
    "open_time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "trades",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)
PRESENT = ""  # the field that every hash has


def voucher(server: str) -> str:
    """Write what vouches for values: the server whose rows they are, and their form; a reader wants both as its own."""
    return f"{server} {FORM}"


def age_of(form: str) -> tuple[int, ...]:
    """Order forms: a newer Helios's is higher, and that of mirrors which were never made is the lowest."""
    return tuple(int(each) for each in form.split() if each.isdecimal())


SCHEMA = quoted(str(metadata.schema))


def literal(value: str) -> str:
    """Write a text as SQL does."""
    return "'" + value.replace("'", "''") + "'"


def json_of(model: type[Any], alias: str, leave_out: Iterable[str], **more: str) -> str:
    """Write the SQL of a row as JSON, exact numbers as text.

    Put together by hand, field by field: json_build_object looks up how each value is written anew for each row, at
    twice the time, and to append each comma and name by itself copies the text once more.
    """
    columns = [each for each in cast("Table", model.__table__).columns if each.name not in leave_out]
    first, *others = [(each.name, f"{alias}.{quoted(each.name)}", each) for each in columns]
    fields = [json_field("{", *first), *(json_field(", ", *each) for each in others)]
    fields += [json_field(", ", *each) for each in more.items()]
    return f"({') || ('.join(fields)}) || '}}'"


def json_field(before: str, name: str, source: str, column: Column[Any] | None = None) -> str:
    """Write the SQL of a name and its value as JSON, after something; of a text that is always there, if no column."""
    begin = f'{before}"{name}": '
    if column is not None and isinstance(column.type, Exact):
        told = f"""{literal(begin + '"')} || {source} || '"'"""
    elif column is not None and isinstance(column.type, Integer):
        told = f"{literal(begin)} || {source}"
    else:
        told = f"{literal(begin)} || to_json({source})::text"
    return f"coalesce({told}, {literal(begin + 'null')})" if column is not None and column.nullable else told


def field_of_candle(name: str) -> str:
    """Write the SQL of a candle's field as text."""
    if name == "open_time":
        return "(extract(epoch FROM open_time) * 1000)::bigint"
    return f"coalesce({quoted(name)}::text, '')"


TABLES = {
    "instruments": table_name(Instrument.__table__),
    "accounts": table_name(Account.__table__),
    "tickers": table_name(Ticker.__table__),
    "klines": table_name(Kline.__table__),
    "orders": table_name(Order.__table__),
    "positions": table_name(Position.__table__),
    "ticker": json_of(Ticker, "t", ()),
    "order": json_of(Order, "o", ("id",), market="i.market", symbol="i.symbol"),
    "position": json_of(Position, "p", ("account_id",), market="i.market", symbol="i.symbol"),
    "is_open": f"o.status IN ({', '.join(map(literal, OPEN_STATUSES))})",
    "intervals": ", ".join(f"({literal(each.value)})" for each in Interval),
    "newest": str(NEWEST),
    "newest_klines": f"{SCHEMA}.newest_klines",
    "kline_series": f"{SCHEMA}.kline_series",
    "of_shards": literal(f"{SCHEMA}.newest_klines(integer, text, integer)"),
    "candle": f"concat_ws(',', {', '.join(map(field_of_candle, CANDLE))})",
}


def statement(text: str, **more: str) -> str:
    """Fill the tables' names and the values' forms into a statement, once: the relay runs it again and again."""
    return text.format(**TABLES, **more)


def all_and_some(text: str, column: str) -> dict[str, str]:
    """Make the statement that reads everything, and the one that does so of some instruments or accounts."""
    return {
        "all": statement(text, of=""),
        "some": statement(text, of=f"AND {column} = ANY (%(ids)s::integer[])"),
    }


LINES = """
    CROSS JOIN LATERAL (
        SELECT string_agg(line, E'\\n' ORDER BY open_time) AS lines FROM (
            SELECT open_time, {candle} AS line FROM {candles} ORDER BY open_time DESC LIMIT {newest}
        ) AS newest
    ) AS series
"""
LOOKED_UP = '{klines} AS k WHERE k.instrument_id = w.instrument_id AND k."interval" = %s'
ASKED_FOR = "{newest_klines}(w.instrument_id, %s, {newest}) AS k"  # of Citus, which plans no such LATERAL itself
# By these the relay reads what changed, a batch at a time; so a connection plans them once.
PREPARE = statement("""
    PREPARE helios_tickers (integer[]) AS
        SELECT i.exchange, i.market, i.symbol, CASE WHEN t.instrument_id IS NOT NULL THEN {ticker} END
        FROM {instruments} AS i LEFT JOIN {tickers} AS t ON t.instrument_id = i.id WHERE i.id = ANY ($1);
    PREPARE helios_packed_tickers (integer[], text) AS
        SELECT count(*) FILTER (WHERE simple), array_agg(id) FILTER (WHERE NOT simple),
               string_agg('$' || octet_length(key) || E'\\r\\n' || key || E'\\r\\n$' || octet_length(value)
                          || E'\\r\\n' || value || E'\\r\\n', '') FILTER (WHERE simple)
        FROM (
            SELECT i.id, $2 || i.exchange || ':' || i.market || ':' || i.symbol AS key,
                   CASE WHEN t.instrument_id IS NOT NULL THEN {ticker} END AS value, t.instrument_id IS NOT NULL
                   AND i.exchange || i.market || i.symbol COLLATE "C" !~ '[^A-Za-z0-9_.~-]' AS simple
            FROM {instruments} AS i LEFT JOIN {tickers} AS t ON t.instrument_id = i.id WHERE i.id = ANY ($1)
            OFFSET 0  -- so that no value is made twice
        ) AS told;
    PREPARE helios_orders (integer[], text[]) AS
        SELECT a.exchange, a.name, w.id, CASE WHEN o.id IS NOT NULL THEN {order} END
        FROM unnest($1, $2) AS w (account_id, id) JOIN {accounts} AS a ON a.id = w.account_id
        LEFT JOIN {orders} AS o ON o.id = w.id::uuid AND o.account_id = w.account_id AND {is_open}
        LEFT JOIN {instruments} AS i ON i.id = o.instrument_id;
    PREPARE helios_positions (integer[], integer[], text[]) AS
        SELECT a.exchange, a.name, concat_ws('|', w.instrument_id, w.position_side),
               CASE WHEN p.account_id IS NOT NULL THEN {position} END
        FROM unnest($1, $2, $3) AS w (account_id, instrument_id, position_side)
        JOIN {accounts} AS a ON a.id = w.account_id
        LEFT JOIN {positions} AS p USING (account_id, instrument_id, position_side)
        LEFT JOIN {instruments} AS i ON i.id = p.instrument_id;
""")
NAMED = "unnest(%s::text[], %s::text[], %s::text[]) AS n (exchange, market, symbol)"
TICKERS = {
    **all_and_some(
        """
        SELECT i.exchange, i.market, i.symbol, {ticker} FROM {tickers} AS t
        JOIN {instruments} AS i ON i.id = t.instrument_id {of}
        """,
        "i.id",
    ),
    "ids": "EXECUTE helios_tickers (%s)",
    "packed": "EXECUTE helios_packed_tickers (%s, %s)",
    "names": statement(f"""
        SELECT n.exchange, n.market, n.symbol, CASE WHEN t.instrument_id IS NOT NULL THEN {{ticker}} END
        FROM {NAMED} LEFT JOIN {{instruments}} AS i USING (exchange, market, symbol)
        LEFT JOIN {{tickers}} AS t ON t.instrument_id = i.id
    """),
}
FOUND = """
    WITH RECURSIVE found AS (
        SELECT n."interval", (SELECT min(instrument_id) FROM {klines} AS k WHERE k."interval" = n."interval")
            AS instrument_id
        FROM (VALUES {intervals}) AS n ("interval")
        UNION ALL
        SELECT found."interval", (SELECT min(instrument_id) FROM {klines} AS k
                                  WHERE k."interval" = found."interval" AND k.instrument_id > found.instrument_id)
        FROM found WHERE found.instrument_id IS NOT NULL
    )
"""
IS_SHARDED = statement("SELECT to_regprocedure({of_shards}) IS NOT NULL")


def of_series(found: str, listed: str, candles: str) -> dict[str, str]:
    """Write the statements for series: of all that are listed, of some ids, of some names."""
    # An interval that the planner knows spares it the other intervals' partitions: ten times the work of a series.
    of_each = LINES.replace("{candles}", candles % 'w."interval"')
    of_one = LINES.replace("{candles}", candles % "%(interval)s")
    return {
        **all_and_some(
            f"""
            {found}
            SELECT i.exchange, i.market, i.symbol, w."interval", lines
            FROM {listed} AS w JOIN {{instruments}} AS i ON i.id = w.instrument_id {{of}} {of_each}
            WHERE lines IS NOT NULL
            """,
            "i.id",
        ),
        "ids": statement(f"""
            SELECT i.exchange, i.market, i.symbol, %(interval)s, lines
            FROM unnest(%(ids)s::integer[]) AS w (instrument_id)
            JOIN {{instruments}} AS i ON i.id = w.instrument_id {of_one}
        """),
        "names": statement(f"""
            SELECT w.exchange, w.market, w.symbol, %(interval)s, lines FROM (
                SELECT n.*, i.id AS instrument_id
                FROM unnest(%(exchanges)s::text[], %(markets)s::text[], %(symbols)s::text[])
                    AS n (exchange, market, symbol)
                LEFT JOIN {{instruments}} AS i USING (exchange, market, symbol)
            ) AS w {of_one}
        """),
    }


SERIES = of_series(FOUND, "found", LOOKED_UP)
SERIES_OF_SHARDS = of_series("", "{kline_series}()", ASKED_FOR)
ORDERS = {
    **all_and_some(
        """
        SELECT a.exchange, a.name, o.id::text, {order}
        FROM {accounts} AS a LEFT JOIN {orders} AS o ON o.account_id = a.id AND {is_open}
        LEFT JOIN {instruments} AS i ON i.id = o.instrument_id WHERE true {of} ORDER BY a.id
        """,
        "a.id",
    ),
    "ids": "EXECUTE helios_orders (%s, %s)",
    "names": statement("""
        SELECT n.exchange, n.name, o.id::text, CASE WHEN a.id IS NOT NULL THEN {order} END, a.id IS NOT NULL
        FROM unnest(%s::text[], %s::text[]) AS n (exchange, name) LEFT JOIN {accounts} AS a USING (exchange, name)
        LEFT JOIN {orders} AS o ON o.account_id = a.id AND {is_open}
        LEFT JOIN {instruments} AS i ON i.id = o.instrument_id ORDER BY n.exchange, n.name
    """),
    "instruments": statement("""
        SELECT a.exchange, a.name, o.id::text, {order} FROM {orders} AS o JOIN {accounts} AS a ON a.id = o.account_id
        JOIN {instruments} AS i ON i.id = o.instrument_id WHERE {is_open} AND o.instrument_id = ANY (%s::integer[])
    """),
}
POSITIONS = {
    **all_and_some(
        """
        SELECT a.exchange, a.name, concat_ws('|', p.instrument_id, p.position_side), {position}
        FROM {accounts} AS a LEFT JOIN {positions} AS p ON p.account_id = a.id
        LEFT JOIN {instruments} AS i ON i.id = p.instrument_id WHERE true {of} ORDER BY a.id
        """,
        "a.id",
    ),
    "ids": "EXECUTE helios_positions (%s, %s, %s)",
    "names": statement("""
        SELECT n.exchange, n.name, concat_ws('|', p.instrument_id, p.position_side), {position}, a.id IS NOT NULL
        FROM unnest(%s::text[], %s::text[]) AS n (exchange, name) LEFT JOIN {accounts} AS a USING (exchange, name)
        LEFT JOIN {positions} AS p ON p.account_id = a.id
        LEFT JOIN {instruments} AS i ON i.id = p.instrument_id ORDER BY n.exchange, n.name
    """),
    "instruments": statement("""
        SELECT a.exchange, a.name, concat_ws('|', p.instrument_id, p.position_side), {position}
        FROM {positions} AS p JOIN {accounts} AS a ON a.id = p.account_id
        JOIN {instruments} AS i ON i.id = p.instrument_id WHERE p.instrument_id = ANY (%s::integer[])
    """),
}
NAMES = {
    "instruments": statement("SELECT id, exchange, market, symbol FROM {instruments}"),
    "accounts": statement("SELECT id, exchange, name FROM {accounts}"),
}
SOME_NAMES = {table: f"{text} WHERE id = ANY (%s::integer[])" for table, text in NAMES.items()}
