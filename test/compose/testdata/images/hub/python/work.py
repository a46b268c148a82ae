import os, redis

q = redis.Redis.from_url(os.environ["REDIS_URL"])
while True:
    job = q.blpop("jobs", timeout=5)
    if job:
        q.rpush("done", job[1].decode() + " by " + os.environ.get("NAME", "worker"))
