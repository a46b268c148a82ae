import http.server, os

def answer():
    said = [os.environ.get("GREETING", "hello")]
    if "DATABASE_URL" in os.environ:
        import psycopg2
        with psycopg2.connect(os.environ["DATABASE_URL"]) as db, db.cursor() as c:
            c.execute("select count(*) from items")
            said.append("items %d" % c.fetchone()[0])
    if "REDIS_URL" in os.environ:
        import redis
        q = redis.Redis.from_url(os.environ["REDIS_URL"])
        q.rpush("jobs", "job")
        said.append("done %s" % (q.blpop("done", timeout=60) or (0, b"nothing"))[1].decode())
    return ", ".join(said)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok" if self.path == "/healthz" else answer().encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body + b"\n")

http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ.get("PORT", "8000"))), Handler).serve_forever()
