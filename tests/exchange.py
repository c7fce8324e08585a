"""An exchange that only talks: messages in the layouts of Binance and ccxt, and what a day of trading sounds like."""

import random
from decimal import Decimal
from typing import Any

START = 1_750_000_000_000  # 2025-06-15 15:06:40 UTC, in milliseconds
Message = dict[str, Any]


def chance(seed: int) -> random.Random:
    """Chance that repeats itself."""
    return random.Random(seed)  # noqa: S311 - nothing secret


def execution_report(**changed: Any) -> Message:
    """A spot order that was just taken; `changed` goes by Binance's letters."""
    message = {
        "e": "executionReport",
        "E": START + 1,
        "s": "BTCUSDT",
        "c": "client-1",
        "S": "BUY",
        "o": "LIMIT",
        "f": "GTC",
        "q": "3.00000000",
        "p": "100.00000000",
        "P": "0.00000000",
        "F": "0.00000000",
        "g": -1,
        "C": "",
        "x": "NEW",
        "X": "NEW",
        "r": "NONE",
        "i": 1001,
        "l": "0.00000000",
        "z": "0.00000000",
        "L": "0.00000000",
        "n": "0",
        "N": None,
        "T": START,
        "t": -1,
        "I": 5001,
        "w": True,
        "m": False,
        "M": False,
        "O": START,
        "Z": "0.00000000",
        "Y": "0.00000000",
        "Q": "0.00000000",
        "W": START,
        "V": "NONE",
    }
    return message | changed


def executed(trade_id: int, quantity: str, filled: str, *, price: str = "100", at: int = 10, **changed: Any) -> Message:
    """The report of a trade, `at` milliseconds after the start."""
    told = {"x": "TRADE", "X": "PARTIALLY_FILLED", "t": trade_id, "l": quantity, "L": price, "z": filled}
    value = str(Decimal(quantity) * Decimal(price))
    fee = {"n": "0.00100000", "N": "BNB", "Y": value, "Z": str(Decimal(filled) * Decimal(price))}
    return execution_report(**(told | fee | {"T": START + at, "E": START + at + 1} | changed))


def order_trade_update(**changed: Any) -> Message:
    """A futures order that was just taken; `changed` goes into its `o`, by Binance's letters."""
    order = {
        "s": "BTCUSDT",
        "c": "client-1",
        "S": "BUY",
        "o": "LIMIT",
        "f": "GTC",
        "q": "3",
        "p": "100",
        "ap": "0",
        "sp": "0",
        "x": "NEW",
        "X": "NEW",
        "i": 1001,
        "l": "0",
        "z": "0",
        "L": "0",
        "T": START,
        "t": 0,
        "b": "0",
        "a": "0",
        "m": False,
        "R": False,
        "wt": "CONTRACT_PRICE",
        "ot": "LIMIT",
        "ps": "BOTH",
        "cp": False,
        "rp": "0",
        "er": "0",
    } | changed
    return {"e": "ORDER_TRADE_UPDATE", "E": order["T"] + 1, "T": order["T"], "o": order}


def rest_order(**changed: Any) -> Message:
    """An order as the answers of order, openOrders and allOrders have it."""
    return {
        "symbol": "BTCUSDT",
        "orderId": 1001,
        "orderListId": -1,
        "clientOrderId": "client-1",
        "price": "100.00000000",
        "origQty": "3.00000000",
        "executedQty": "0.00000000",
        "cummulativeQuoteQty": "0.00000000",
        "status": "NEW",
        "timeInForce": "GTC",
        "type": "LIMIT",
        "side": "BUY",
        "stopPrice": "0.00000000",
        "icebergQty": "0.00000000",
        "time": START,
        "updateTime": START,
        "isWorking": True,
        "origQuoteOrderQty": "0.00000000",
        "workingTime": START,
        "selfTradePreventionMode": "NONE",
    } | changed


def rest_trade(**changed: Any) -> Message:
    """A trade as the answer of myTrades has it."""
    return {
        "symbol": "BTCUSDT",
        "id": 1,
        "orderId": 1001,
        "orderListId": -1,
        "price": "100.00000000",
        "qty": "1.00000000",
        "quoteQty": "100.00000000",
        "commission": "0.00100000",
        "commissionAsset": "BNB",
        "time": START + 10,
        "isBuyer": True,
        "isMaker": False,
        "isBestMatch": True,
    } | changed


def account_position(at: int = 0, **held: tuple[str, str]) -> Message:
    """What assets came to, as (free, locked)."""
    balances = [{"a": asset, "f": free, "l": locked} for asset, (free, locked) in held.items()]
    return {"e": "outboundAccountPosition", "E": START + at, "u": START + at, "B": balances}


def account_update(at: int = 0, **held: tuple[str, str]) -> Message:
    """What a futures account's assets came to, as (wallet, cross wallet)."""
    balances = [{"a": asset, "wb": wallet, "cw": cross, "bc": "0"} for asset, (wallet, cross) in held.items()]
    positions = [{"s": "BTCUSDT", "pa": "77", "ep": "1", "cr": "0", "up": "0", "mt": "cross", "iw": "0", "ps": "BOTH"}]
    return {"e": "ACCOUNT_UPDATE", "E": START + at, "T": START + at, "a": {"m": "ORDER", "B": balances, "P": positions}}


def ticker_stream(symbol: str, price: str, at: int = 0) -> Message:
    """A 24hrTicker."""
    return {
        "e": "24hrTicker",
        "E": START + at,
        "s": symbol,
        "p": "1.5",
        "P": "1.523",
        "w": "99.1",
        "x": "98.5",
        "c": price,
        "Q": "0.3",
        "b": "99.99",
        "B": "7",
        "a": "100.01",
        "A": "8",
        "o": "98.5",
        "h": "101",
        "l": "97",
        "v": "1000.5",
        "q": "99150.25",
        "O": START + at - 86_400_000,
        "C": START + at,
        "F": 1,
        "L": 77,
        "n": 77,
    }


def book_ticker(symbol: str, bid: str, ask: str) -> Message:
    """Best bid and ask of a spot stream, which tells neither type nor time."""
    return {"u": 400900217, "s": symbol, "b": bid, "B": "31.21", "a": ask, "A": "40.66"}


def kline_stream(symbol: str, *, closed: bool = True, close: str = "100.5", at: int = START) -> Message:
    """A candle of a minute."""
    open_time = at // 60_000 * 60_000
    candle = {
        "t": open_time,
        "T": open_time + 59_999,
        "s": symbol,
        "i": "1m",
        "f": 100,
        "L": 200,
        "o": "100.10",
        "c": close,
        "h": "101",
        "l": "99",
        "v": "1000.000001",
        "n": 100,
        "x": closed,
        "q": "100000.5",
        "V": "500",
        "Q": "50000",
        "B": "0",
    }
    return {"e": "kline", "E": at, "s": symbol, "k": candle}


def exchange_info(symbol: str, **changed: Any) -> Message:
    """The answer of exchangeInfo for one symbol."""
    filters = [
        {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000", "tickSize": "0.01000000"},
        {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000", "stepSize": "0.00001000"},
        {"filterType": "NOTIONAL", "minNotional": "5.00000000", "applyMinToMarket": True},
        {"filterType": "A_FILTER_OF_TOMORROW", "limit": 7},
    ]
    told = {"symbol": symbol, "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT", "filters": filters}
    return {
        "timezone": "UTC",
        "serverTime": START,
        "rateLimits": [],
        "exchangeFilters": [],
        "symbols": [told | changed],
    }


def kline_row(open_time: int = START // 3_600_000 * 3_600_000, close: str = "100.5") -> list[Any]:
    """A candle of an hour in the answer of klines."""
    values = ["100.10", "101", "99", close, "1000.000001", open_time + 3_599_999, "100000.5", 100, "500", "50000", "0"]
    return [open_time, *values]


class Day:
    """A day of an account: what the exchange says of its orders, oldest first; futures where `futures`."""

    def __init__(self, seed: random.Random, symbols: list[str], *, futures: bool = False, orders: int = 4) -> None:
        self.seed = seed
        self.futures = futures
        self.clock = 0
        self.trades = 100
        self.messages: list[Message] = []
        self.placed: list[Message] = []
        for number in range(orders):
            self._order(seed.choice(symbols), 1000 + number)

    def _later(self) -> int:
        """Go on by a few milliseconds; often by none, as an exchange does."""
        self.clock += self.seed.choice([0, 0, 1, 7])
        return self.clock

    def _order(self, symbol: str, number: int) -> None:
        seed = self.seed
        client = seed.choice([f"client-{number}", f"web_{number}", "adl_autoclose"])
        side = seed.choice(["BUY", "SELL"])
        ordered, price = seed.randint(1, 5), seed.randint(90, 110)
        known: Message = {"s": symbol, "c": client, "S": side, "i": number, "q": str(ordered), "p": str(price)}
        if self.futures:
            known["ps"] = seed.choice(["BOTH", "LONG", "SHORT"])
        self.placed.append(known)
        began = self._later()
        self._say(known | {"T": START + began})
        filled, value = 0, Decimal(0)
        while filled < ordered and seed.random() < 0.75:
            quantity, paid = seed.randint(1, ordered - filled), seed.randint(90, 110)
            filled, value = filled + quantity, value + quantity * paid
            self.trades += 1
            status = "FILLED" if filled == ordered else "PARTIALLY_FILLED"
            now = {"x": "TRADE", "X": status, "t": self.trades, "l": str(quantity), "L": str(paid), "z": str(filled)}
            fee = {"n": "0.01", "N": "USDT", "Y": str(quantity * paid), "Z": str(value), "T": START + self._later()}
            self._say(known | now | fee, began)
            if seed.random() < 0.4:
                self._trade(known, now, fee)
        if filled < ordered and seed.random() < 0.6:
            status = seed.choice(["CANCELED", "EXPIRED"])
            last = {"x": status, "X": status, "z": str(filled), "Z": str(value), "T": START + self._later()}
            renamed = {} if self.futures or status == "EXPIRED" else {"C": client, "c": f"cancel-{number}"}
            self._say(known | last | renamed, began)
            if seed.random() < 0.3 and not self.futures:
                self.trades += 1
                after = {"x": "TRADE", "X": "FILLED", "t": self.trades, "l": "1", "L": "100", "z": str(filled + 1)}
                self._say(known | after | {"T": START + self._later(), "Z": str(value + 100), "Y": "100"}, began)
        if seed.random() < 0.5:
            held = {"USDT": (str(seed.randint(0, 9)), str(seed.randint(0, 9))), "BTC": (str(seed.randint(0, 9)), "0")}
            told = account_update if self.futures else account_position
            self.messages.append(told(self._later(), **held))

    def _say(self, told: Message, began: int | None = None) -> None:
        if self.futures:
            self.messages.append(order_trade_update(**{k: v for k, v in told.items() if k not in {"Y", "Z", "C"}}))
            return
        told = {"O": told["T"] if began is None else START + began, "E": told["T"]} | told
        self.messages.append(execution_report(**told))
        if self.seed.random() < 0.3:
            self.messages.append(
                rest_order(
                    symbol=told["s"],
                    orderId=told["i"],
                    clientOrderId=told.get("C") or told["c"],
                    side=told["S"],
                    price=told["p"],
                    origQty=told["q"],
                    executedQty=told.get("z", "0"),
                    cummulativeQuoteQty=told.get("Z", "0"),
                    status=told.get("X", "NEW"),
                    time=told["O"],
                    updateTime=told["T"],
                )
            )

    def _trade(self, known: Message, now: Message, fee: Message) -> None:
        told = rest_trade(
            symbol=known["s"],
            id=now["t"],
            orderId=known["i"],
            price=now["L"],
            qty=now["l"],
            quoteQty=fee["Y"],
            commission=fee["n"],
            commissionAsset=fee["N"],
            time=fee["T"],
            isBuyer=known["S"] == "BUY",
        )
        if self.futures:
            told |= {"side": known["S"], "buyer": told.pop("isBuyer"), "maker": told.pop("isMaker")}
            told["positionSide"] = known["ps"]
        self.messages.append(told)
