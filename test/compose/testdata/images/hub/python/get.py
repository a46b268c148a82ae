import sys, time, urllib.error, urllib.request

end = time.time() + 120
while True:
    try:
        sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())
        break
    except urllib.error.HTTPError as e: # it answers
        sys.exit(str(e))
    except OSError: # it does not listen yet
        if time.time() > end or "--once" in sys.argv:
            raise
        time.sleep(0.1)
