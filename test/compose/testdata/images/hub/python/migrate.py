import os, psycopg2

with psycopg2.connect(os.environ["DATABASE_URL"]) as db, db.cursor() as c:
    c.execute("create table if not exists items (name text)")
    c.execute("insert into items values ('one'), ('two')")
