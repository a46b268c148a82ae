import runpy
runpy.run_path("/app/serve.py", run_name="__main__")
