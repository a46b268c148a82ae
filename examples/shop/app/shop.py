"""A small shop: lists orders and takes new ones.

The standard library serves HTTP, psycopg2 speaks to PostgreSQL. Every value
reaches SQL as a parameter and HTML through escape().
"""

import json
import os
import random
import signal
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import psycopg2
import psycopg2.extras

DATABASE_URL = os.environ.get("DATABASE_URL", "postgres://postgres@localhost/postgres")
PORT = int(os.environ.get("PORT", "8080"))

SEED_ORDERS = 5000
PAGE_SIZE = 25
MAX_BODY = 16 * 1024  # bytes of a posted form
MAX_CONNECTIONS = 10  # to the database, over all requests

PRODUCTS = [
    ("Walnut desk", "349.00"), ("Reading lamp", "59.90"), ("Linen notebook", "14.50"),
    ("Fountain pen", "42.00"), ("Wool blanket", "89.00"), ("Espresso cups, set of 4", "36.00"),
    ("Cast-iron pan", "74.95"), ("Beeswax candle", "9.80"), ("Oak stool", "128.00"),
    ("Canvas bag", "27.40"), ("Wall clock", "65.00"), ("Tea kettle", "54.30"),
]
CUSTOMERS = [
    "Ada", "Barbara", "Chen", "Dorothy", "Edsger", "Frances", "Grace", "Hedy", "Ivan",
    "Joan", "Katherine", "Leslie", "Margaret", "Niklaus", "Olga", "Radia", "Sophie", "Tu",
]

SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer   text NOT NULL CHECK (length(customer) BETWEEN 1 AND 80),
    product    text NOT NULL CHECK (length(product) BETWEEN 1 AND 80),
    quantity   integer NOT NULL CHECK (quantity BETWEEN 1 AND 999),
    price      numeric(10, 2) NOT NULL CHECK (price >= 0),
    created_at timestamptz NOT NULL DEFAULT now()
)
"""


class Database:
    """Hands out connections, keeps idle ones, and drops those that broke."""

    def __init__(self, url):
        self.url = url
        self.idle = []
        self.lock = threading.Lock()
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def run(self, work):
        """Calls work(cursor) in one transaction and returns what it returns."""
        if not self.slots.acquire(timeout=10):
            raise psycopg2.OperationalError("all database connections are busy")
        try:
            # An idle connection may have died with the database: then once more.
            for last in (False, True):
                with self.lock:
                    connection = self.idle.pop() if self.idle and not last else None
                reused = connection is not None
                connection = connection or psycopg2.connect(self.url, connect_timeout=3, options="-c timezone=UTC")
                try:
                    with connection, connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                        result = work(cursor)
                except (psycopg2.OperationalError, psycopg2.InterfaceError):
                    connection.close()
                    if not reused:
                        raise
                    continue
                except BaseException:
                    connection.close()
                    raise
                with self.lock:
                    self.idle.append(connection)
                return result
            raise psycopg2.OperationalError("the database is away")
        finally:
            self.slots.release()


def prepare(database):
    """Makes the table and, where it is empty, fills it: the same orders each time."""

    def work(cursor):
        cursor.execute("SELECT pg_advisory_xact_lock(7310)")
        cursor.execute(SCHEMA)
        cursor.execute("SELECT EXISTS (SELECT FROM orders) AS filled")
        if cursor.fetchone()["filled"]:
            return 0
        chance = random.Random(2024)
        when = datetime(2024, 1, 1, 8, tzinfo=timezone.utc)
        rows = []
        for _ in range(SEED_ORDERS):
            product, price = chance.choice(PRODUCTS)
            when += timedelta(seconds=chance.randrange(60, 9000))
            rows.append((chance.choice(CUSTOMERS), product, chance.randint(1, 5), Decimal(price), when))
        psycopg2.extras.execute_values(
            cursor, "INSERT INTO orders (customer, product, quantity, price, created_at) VALUES %s", rows, page_size=1000)
        return len(rows)

    for attempt in range(60):
        try:
            added = database.run(work)
        except psycopg2.OperationalError as error:
            if attempt == 59:
                raise
            if attempt % 10 == 0:
                print(f"waiting for the database: {str(error).strip().splitlines()[0]}", flush=True)
            time.sleep(0.5)
        else:
            print(f"added {added} orders" if added else "orders are there", flush=True)
            return


def list_orders(database, page):
    """Returns the page's orders, newest first, how many there are, and their sum."""

    def work(cursor):
        cursor.execute("SELECT count(*) AS count, coalesce(sum(quantity * price), 0) AS total FROM orders")
        summary = cursor.fetchone()
        cursor.execute(
            "SELECT id, customer, product, quantity, price, quantity * price AS total, created_at"
            " FROM orders ORDER BY id DESC LIMIT %s OFFSET %s", (PAGE_SIZE, (page - 1) * PAGE_SIZE))
        return cursor.fetchall(), summary["count"], summary["total"]

    return database.run(work)


def add_order(database, order):
    def work(cursor):
        cursor.execute(
            "INSERT INTO orders (customer, product, quantity, price) VALUES (%s, %s, %s, %s) RETURNING id",
            (order["customer"], order["product"], order["quantity"], order["price"]))
        return cursor.fetchone()["id"]

    return database.run(work)


def read_order(form):
    """Returns the order of a form, or raises ValueError with what is wrong."""

    def field(name):
        value = form.get(name, [""])[0].strip()
        if not 1 <= len(value) <= 80 or not value.isprintable():
            raise ValueError(f"{name}: want 1 to 80 printable characters")
        return value

    order = {"customer": field("customer"), "product": field("product")}
    try:
        order["quantity"] = int(form.get("quantity", [""])[0])
    except ValueError:
        raise ValueError("quantity: want a whole number") from None
    if not 1 <= order["quantity"] <= 999:
        raise ValueError("quantity: want 1 to 999")
    prices = dict(PRODUCTS)
    try:
        price = Decimal(form.get("price", [prices.get(order["product"], "")])[0])
    except InvalidOperation:
        raise ValueError("price: want a number, or choose a listed product") from None
    if not price.is_finite() or not 0 <= price < 100_000_000:
        raise ValueError("price: want 0 to 99,999,999.99")
    order["price"] = price.quantize(Decimal("0.01"))
    return order


STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #667085; --line: #e4e7ec; --paper: #fff; --wash: #f5f7fa; --mark: #0f766e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2a3240; --paper: #161b24; --wash: #0e1218; --mark: #2dd4bf; } }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--wash); }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: baseline; margin-bottom: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; }
.soft { color: var(--soft); }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: .75rem; margin-bottom: 1.25rem; overflow-x: auto; }
form { display: flex; flex-wrap: wrap; gap: .75rem; align-items: end; padding: 1rem; }
label { display: grid; gap: .2rem; font-size: .8rem; color: var(--soft); flex: 1 1 10rem; }
label.short { flex: 0 1 6rem; }
input, select, button { font: inherit; color: inherit; padding: .45rem .6rem; border: 1px solid var(--line); border-radius: .45rem; background: var(--wash); }
button { background: var(--mark); border-color: var(--mark); color: var(--paper); font-weight: 600; cursor: pointer; }
table { width: 100%; border-collapse: collapse; }
th, td { text-align: left; padding: .5rem 1rem; border-top: 1px solid var(--line); white-space: nowrap; }
thead th { border-top: 0; font-size: .8rem; font-weight: 600; color: var(--soft); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
nav { display: flex; justify-content: space-between; }
a { color: var(--mark); }
.notice { padding: .75rem 1rem; border-left: .25rem solid var(--mark); }
"""


def render(orders, count, total, page, notice):
    pages = max(1, -(-count // PAGE_SIZE))
    rows = "".join(
        f"<tr><td class=number>{o['id']}</td><td>{o['created_at']:%Y-%m-%d %H:%M}</td><td>{escape(o['customer'])}</td>"
        f"<td>{escape(o['product'])}</td><td class=number>{o['quantity']}</td><td class=number>{o['price']:,.2f}</td>"
        f"<td class=number>{o['total']:,.2f}</td></tr>" for o in orders)
    options = "".join(f"<option value=\"{escape(p)}\">{escape(p)} · {escape(price)}</option>" for p, price in PRODUCTS)
    newer = f'<a href="/?page={page - 1}">← Newer</a>' if page > 1 else "<span></span>"
    older = f'<a href="/?page={page + 1}">Older →</a>' if page < pages else "<span></span>"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shop · orders</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><h1>Orders</h1><span class="soft">{count:,} orders, {total:,.2f} in all</span></header>
{f'<p class="card notice" role="status">{escape(notice)}</p>' if notice else ''}
<section class="card">
<form method="post" action="/orders">
<label>Customer <input name="customer" maxlength="80" required autocomplete="off"></label>
<label>Product <select name="product">{options}</select></label>
<label class="short">Quantity <input name="quantity" type="number" min="1" max="999" value="1" required></label>
<button>Add order</button>
</form>
</section>
<section class="card">
<table>
<thead><tr><th class=number>No.</th><th>Placed (UTC)</th><th>Customer</th><th>Product</th>
<th class=number>Quantity</th><th class=number>Price</th><th class=number>Total</th></tr></thead>
<tbody>{rows}</tbody>
</table>
</section>
<nav>{newer}<span class="soft">Page {page:,} of {pages:,}</span>{older}</nav>
</main>
</body>
</html>
"""


class Handler(BaseHTTPRequestHandler):
    server_version = "shop"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a client may be silent
    database = None

    def do_GET(self):
        url = urlsplit(self.path)
        routes = {"/": self.page, "/api/orders": self.api, "/healthz": self.health}
        self.guard(routes.get(url.path), parse_qs(url.query))

    do_HEAD = do_GET

    def do_POST(self):
        self.guard(self.create if urlsplit(self.path).path == "/orders" else None, {})

    def guard(self, route, query):
        try:
            if route is None:
                self.answer(404, "There is nothing here.\n")
            else:
                route(query)
        except ValueError as error:
            self.answer(400, f"{error}\n")
        except psycopg2.OperationalError as error:
            self.log_error("database: %s", str(error).strip())
            self.answer(503, "The database is away.\n")

    def page_number(self, query):
        text = query.get("page", ["1"])[0]
        if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= 10_000_000 or len(text) > 9:
            raise ValueError("page: want a whole number from 1")
        return int(text)

    def page(self, query):
        page = self.page_number(query)
        orders, count, total = list_orders(self.database, page)
        notice = "Added order " + query["added"][0][:20] + "." if "added" in query else ""
        self.answer(200, render(orders, count, total, page, notice), "text/html; charset=utf-8")

    def api(self, query):
        page = self.page_number(query)
        orders, count, _ = list_orders(self.database, page)
        for order in orders:
            order["created_at"] = order["created_at"].isoformat()
            order["price"], order["total"] = str(order["price"]), str(order["total"])
        body = json.dumps({"page": page, "page_size": PAGE_SIZE, "count": count, "orders": orders})
        self.answer(200, body + "\n", "application/json")

    def health(self, _):
        self.database.run(lambda cursor: cursor.execute("SELECT 1 FROM orders LIMIT 1"))
        self.answer(200, "ok\n")

    def create(self, _):
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length[:9]) > MAX_BODY:
            self.close_connection = True
            raise ValueError(f"want a form of at most {MAX_BODY} bytes")
        try:
            form = parse_qs(self.rfile.read(int(length)).decode(), max_num_fields=20)
        except UnicodeDecodeError:
            raise ValueError("the form is not UTF-8") from None
        number = add_order(self.database, read_order(form))
        self.answer(303, "", extra={"Location": "/?" + urlencode({"added": number})})

    def answer(self, status, text, kind="text/plain; charset=utf-8", extra=None):
        body = text.encode()
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", **(extra or {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_request(self, code="-", size="-"):
        if urlsplit(self.path).path != "/healthz":
            super().log_request(code, size)


def main():
    Handler.database = Database(DATABASE_URL)
    if os.environ.get("SHOP_PREPARE", "1") == "1":  # where the database is others', so is its table
        prepare(Handler.database)
    server = ThreadingHTTPServer(("", PORT), Handler)
    server.daemon_threads = True
    # shutdown() waits for serve_forever to return, so it needs a thread of its own.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"listening on port {PORT}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
