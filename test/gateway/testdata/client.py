"""What people do with psycopg, through the gateway. Each line printed is checked."""
import io
import os
import sys
import threading
import time

import psycopg

conninfo = sys.argv[1]


def state(call):
    try:
        call()
    except psycopg.Error as e:
        return e.sqlstate
    return "no error"


with psycopg.connect(conninfo, autocommit=True) as c:
    print("prepared", [c.execute("select item from orders where id = %s", [i], prepare=True).fetchone()[0] for i in (1, 2, 3)])
    print("binary", c.cursor(binary=True).execute("select amount, paid, doc from orders where id = %s", [1]).fetchone())
    print("refused", state(lambda: c.execute("delete from orders")), c.execute("select count(*) from orders").fetchone()[0])
    c.autocommit = False
    c.execute("insert into orders values (100, 'in a transaction', 1, true, '{}')")
    print("refused inside", state(lambda: c.execute("delete from orders")), c.info.transaction_status.name, state(lambda: c.execute("select 1")))
    c.rollback()
    print("rolled back", c.execute("select count(*) from orders").fetchone()[0])
    c.commit()
    with c.cursor().copy("copy orders (id, item) from stdin") as copy:
        for i in range(1000, 2000):
            copy.write_row((i, "copied"))
    with c.cursor().copy("copy (select id from orders where id >= 1000) to stdout") as copy:
        print("copied", sum(1 for _ in copy.rows()))
    c.rollback()
    with c.pipeline():
        cursors = [c.execute("select %s::int + 1", [i]) for i in range(50)]
    print("pipelined", sum(x.fetchone()[0] for x in cursors))
    c.commit()
    c.autocommit = True
    results = []
    try:
        with c.pipeline() as p:
            results.append(c.execute("select 1"))
            results.append(c.execute("delete from orders"))
            results.append(c.execute("select 2"))
            p.sync()
    except psycopg.Error as e:
        print("refused in a pipeline", e.sqlstate, results[0].fetchone()[0])
    print("goes on", c.execute("select 3").fetchone()[0])
    threading.Timer(0.3, c.cancel).start()
    began = time.monotonic()
    print("cancelled", state(lambda: c.execute("select pg_sleep(60)")), time.monotonic() - began < 30)
    print("large object", state(lambda: c.execute("select lo_create(0)")))
    c.execute("listen orders_changed")
    with psycopg.connect(conninfo, autocommit=True) as other:
        other.execute("notify orders_changed, 'three'")
    for n in c.notifies():
        print("notified", n.channel, n.payload)
        break
    with c.transaction(), c.cursor(name="server_side") as cursor:
        cursor.execute("select generate_series(1, 1000)")
        print("cursor", sum(row[0] for row in cursor))
