"""An installation of the ancestor in `public`: its tables as it makes them, with rows good and bad."""

from installation import run_sql
from sqlalchemy import URL

TIMEFRAMES = ("1m", "1h", "1d")
# What the ancestor checks itself is left out where a row shall break it: the tables of older versions checked less.
TABLES = (
    """
    CREATE TABLE public.current_prices (
        symbol varchar(20) PRIMARY KEY, price numeric(18, 8) NOT NULL, bid_price numeric(18, 8),
        ask_price numeric(18, 8), volume_24h numeric(18, 8), price_change_24h numeric(18, 8),
        price_change_percent_24h numeric(8, 4), high_24h numeric(18, 8), low_24h numeric(18, 8),
        timestamp timestamptz NOT NULL, updated_at timestamptz DEFAULT CURRENT_TIMESTAMP)
    """,
    *(
        f"""
        CREATE TABLE public.ohlcv_{each} (
            symbol varchar(20) NOT NULL, timestamp timestamptz NOT NULL, open_price numeric(18, 8) NOT NULL,
            high_price numeric(18, 8) NOT NULL, low_price numeric(18, 8) NOT NULL,
            close_price numeric(18, 8) NOT NULL, volume numeric(18, 8) NOT NULL, trades_count integer,
            taker_buy_volume numeric(18, 8), created_at timestamptz DEFAULT CURRENT_TIMESTAMP,
            PRIMARY KEY (symbol, timestamp))
        """
        for each in TIMEFRAMES
    ),
    """
    CREATE TABLE public.trading_sessions (
        session_id uuid PRIMARY KEY DEFAULT gen_random_uuid(), session_name varchar(100) NOT NULL,
        strategy_name varchar(50) NOT NULL, symbols text[] NOT NULL, start_time timestamptz NOT NULL,
        end_time timestamptz, status varchar(20) NOT NULL DEFAULT 'active', config_data jsonb,
        performance_metrics jsonb, created_at timestamptz DEFAULT CURRENT_TIMESTAMP,
        updated_at timestamptz DEFAULT CURRENT_TIMESTAMP)
    """,
    """
    CREATE TABLE public.data_quality_metrics (
        id serial PRIMARY KEY, timestamp timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP, symbol varchar(20),
        metric_type varchar(50) NOT NULL, metric_value numeric(18, 8), metric_data jsonb,
        quality_score numeric(5, 4) CHECK (quality_score >= 0 AND quality_score <= 1),
        alert_level varchar(20) DEFAULT 'info')
    """,
    """
    CREATE TABLE public.orders (
        order_id varchar(50) PRIMARY KEY, symbol varchar(20) NOT NULL, side varchar(4) NOT NULL,
        order_type varchar(15) NOT NULL, quantity numeric(20, 8) NOT NULL, price numeric(20, 8),
        stop_price numeric(20, 8), status varchar(20) NOT NULL, time_in_force varchar(10) DEFAULT 'GTC',
        filled_quantity numeric(20, 8) DEFAULT 0, average_fill_price numeric(20, 8),
        commission numeric(20, 8) DEFAULT 0, commission_asset varchar(10), exchange_order_id varchar(50),
        created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL)
    """,
    """
    CREATE TABLE public.positions (
        id serial PRIMARY KEY, symbol varchar(20) NOT NULL UNIQUE, side varchar(5) NOT NULL,
        quantity numeric(20, 8) NOT NULL, entry_price numeric(20, 8) NOT NULL, current_price numeric(20, 8) NOT NULL,
        realized_pnl numeric(20, 8) DEFAULT 0, total_commission numeric(20, 8) DEFAULT 0,
        opened_at timestamptz NOT NULL, updated_at timestamptz NOT NULL)
    """,
    """
    CREATE TABLE public.order_history (
        id serial PRIMARY KEY, order_id varchar(50) NOT NULL, status varchar(20) NOT NULL,
        changed_at timestamptz NOT NULL, details jsonb)
    """,
)
# of two symbols; the last minutes of 2023 lie before any partition
CANDLES = """
    INSERT INTO public.ohlcv_1m (symbol, timestamp, open_price, high_price, low_price, close_price, volume,
                                 trades_count, created_at)
    SELECT symbol, at, 100.00000001 + n % 7, 109.5, 99.5, 101.25, n / 8.0, n % 90, at + interval '1 hour'
    FROM unnest(ARRAY['BTCUSDT', 'ETHUSDT']) AS symbol, generate_series(1, {count}) AS n,
         LATERAL (SELECT timestamptz '2023-12-31T23:00Z' + n * interval '1 minute' AS at) AS t
"""
ROWS = (
    CANDLES.format(count=200),
    # bad ones: off the grid, a price of zero, high below low, an implausible year, no symbol, unfinished, in the future
    """
    INSERT INTO public.ohlcv_1h (symbol, timestamp, open_price, high_price, low_price, close_price, volume,
                                 trades_count, created_at)
    VALUES ('BTCUSDT', '2025-01-01T00:00Z', 1, 2, 0.5, 1.5, 10, 3, '2025-01-01T02:00Z'),
           ('BTCUSDT', '2025-01-01T01:30Z', 1, 2, 0.5, 1.5, 10, 3, '2025-01-02T00:00Z'),
           ('BTCUSDT', '2025-01-01T02:00Z', 0, 2, 0, 1.5, 10, 3, '2025-01-02T00:00Z'),
           ('BTCUSDT', '2025-01-01T03:00Z', 1, 0.9, 0.5, 0.7, 10, 3, '2025-01-02T00:00Z'),
           ('BTCUSDT', '1970-01-01T00:00Z', 1, 2, 0.5, 1.5, 10, 3, '2025-01-02T00:00Z'),
           ('BTCUSDT', 'infinity', 1, 2, 0.5, 1.5, 10, 3, '2025-01-02T00:00Z'),
           ('', '2025-01-01T00:00Z', 1, 2, 0.5, 1.5, 10, 3, '2025-01-02T00:00Z'),
           ('BTCUSDT', '2025-01-01T04:00Z', 1, 2, 0.5, 1.5, 10, 3, '2025-01-01T04:20Z'),
           ('BTCUSDT', '2025-01-01T05:00Z', 1, 2, 0.5, 1.5, 10, -3, '2025-01-01T05:20Z'),
           ('BTCUSDT', '2025-01-01T06:00Z', 1, 2, 0.5, 1.5, 10, NULL, '2025-01-01T06:20Z'),
           ('ETHUSDT', '2199-01-01T00:00Z', 1, 2, 0.5, 1.5, 10, 3, '2025-01-02T00:00Z')
    """,
    """
    INSERT INTO public.current_prices (symbol, price, bid_price, ask_price, volume_24h, high_24h, low_24h, timestamp)
    VALUES ('BTCUSDT', 96340.61, 96340.6, 96340.62, 1234.5, 97000, 95000, '2025-01-01T00:00:01.5Z'),
           ('SOLUSDT', 180.12345678, NULL, NULL, NULL, NULL, NULL, '2025-01-01T00:00:02Z'),
           ('BADUSDT', -1, NULL, NULL, NULL, NULL, NULL, '2025-01-01T00:00:02Z')
    """,
    """
    INSERT INTO public.trading_sessions VALUES
        ('7b0e9a3e-90c5-4d7c-8a38-0a34a45b0a01', 'first', 'grid', '{BTCUSDT,ETHUSDT}', '2025-01-01T00:00Z',
         '2025-01-02T00:00Z', 'completed', '{"levels": 10}', '{"pnl": "12.50"}'),
        ('7b0e9a3e-90c5-4d7c-8a38-0a34a45b0a02', 'second', 'grid', '{BTCUSDT}', '2025-01-03T00:00Z', NULL, 'error',
         NULL, NULL)
    """,
    """
    INSERT INTO public.data_quality_metrics (timestamp, symbol, metric_type, metric_value, metric_data, quality_score,
                                             alert_level)
    VALUES ('2025-01-01T00:00Z', 'BTCUSDT', 'ticker_update', 96340.61, '{"volume": "1234.5"}', 0.95, 'info'),
           ('2025-01-01T00:00Z', NULL, 'kline_gaps', 3, NULL, 0.5, 'error'),
           ('2025-01-01T00:00Z', 'BTCUSDT', 'weather', 3, NULL, NULL, 'info'),
           ('2025-01-01T00:00Z', 'BTCUSDT', 'ticker_update', 3, NULL, NULL, 'purple')
    """,
    """
    INSERT INTO public.orders (order_id, symbol, side, order_type, quantity, price, status, filled_quantity,
                               average_fill_price, commission, exchange_order_id, created_at, updated_at, time_in_force)
    VALUES ('HLO-1', 'BTCUSDT', 'BUY', 'LIMIT', 0.5, 50000, 'FILLED', 0.5, 49999.5, 0.01, '4711',
            '2025-01-01T00:00:00.123Z', '2025-01-01T00:05:00Z', 'GTC'),
           ('HLO-2', 'BTCUSDT', 'SELL', 'STOP_LIMIT', 0.1, 60000, 'CANCELLED', 0, NULL, 0, '',
            '2025-01-02T00:00:00Z', '2025-01-02T00:05:00Z', 'GTC'),
           ('HLO-3', 'ETHUSDT', 'BUY', 'ICEBERG', 1, NULL, 'OPEN', 0, NULL, 0, '4712',
            '2025-01-03T00:00:00Z', '2025-01-03T00:00:01Z', NULL),
           ('HLO-4', 'BTCUSDT', 'HOLD', 'LIMIT', 1, 1, 'OPEN', 0, NULL, 0, NULL,
            '2025-01-03T00:00:00Z', '2025-01-03T00:00:01Z', 'GTC'),
           ('HLO-5', 'BTCUSDT', 'BUY', 'LIMIT', 0, 1, 'OPEN', 0, NULL, 0, NULL,
            '2025-01-03T00:00:00Z', '2025-01-03T00:00:01Z', 'GTC'),
           ('HLO-6', 'BTCUSDT', 'BUY', 'LIMIT', 1, 1, 'OPEN', 0, NULL, 0, NULL,
            '2025-01-03T00:00:00Z', '2025-01-03T00:00:01Z', 'DAY')
    """,
    """
    INSERT INTO public.order_history (order_id, status, changed_at)
    VALUES ('HLO-1', 'PENDING', '2025-01-01T00:00:00.123Z'), ('HLO-1', 'SUBMITTED', '2025-01-01T00:00:01Z'),
           ('HLO-1', 'OPEN', '2025-01-01T00:00:02Z'), ('HLO-1', 'PARTIALLY_FILLED', '2025-01-01T00:04:00Z'),
           ('HLO-1', 'FILLED', '2025-01-01T00:05:00Z'),
           ('HLO-2', 'OPEN', '2025-01-02T00:00:00Z'),
           ('HLO-4', 'OPEN', '2025-01-02T00:00:00Z'),
           ('HLO-2', 'DREAMING', '2025-01-02T00:01:00Z')
    """,
    """
    INSERT INTO public.positions (symbol, side, quantity, entry_price, current_price, opened_at, updated_at)
    VALUES ('BTCUSDT', 'LONG', 0.5, 49999.5, 96340.61, '2025-01-01T00:05:00Z', '2025-01-01T00:05:00Z'),
           ('ETHUSDT', 'FLAT', 0, 0, 0, '2025-01-01T00:05:00Z', '2025-01-01T00:05:00Z')
    """,
)


def install(url: URL, *rows: str) -> None:
    """Make the ancestor's tables in `public`, and fill them."""
    run_sql(url, *TABLES, *(each.replace(":", "\\:") for each in rows or ROWS))
