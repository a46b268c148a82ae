"""What people do with psycopg2, through the gateway. Each line printed is checked."""
import io
import select
import sys

import psycopg2

c = psycopg2.connect(sys.argv[1])
c.autocommit = True
cur = c.cursor()


def state(sql):
    try:
        cur.execute(sql)
    except psycopg2.Error as e:
        return e.pgcode
    return "no error"


cur.execute("select item from orders where id = %s", [1])
print("parameters", cur.fetchone()[0])
print("refused", state("delete from orders"))
cur.execute("select count(*) from orders")
print("goes on", cur.fetchone()[0])
c.autocommit = False
cur.execute("insert into orders values (100, 'in a transaction', 1, true, '{}')")
print("refused inside", state("delete from orders"), state("select 1"))
c.rollback()
cur.copy_from(io.StringIO("".join("%d\tcopied\n" % i for i in range(1000, 2000))), "orders", columns=("id", "item"))
out = io.StringIO()
cur.copy_expert("copy (select id from orders where id >= 1000) to stdout", out)
print("copied", out.getvalue().count("\n"))
c.rollback()
c.autocommit = True
cur.execute("listen orders_changed")
cur.execute("notify orders_changed, 'three'")
select.select([c], [], [], 10)
c.poll()
print("notified", c.notifies[0].channel, c.notifies[0].payload)
print("many", state("select 1; delete from orders"), state("select 1; select 2"))
