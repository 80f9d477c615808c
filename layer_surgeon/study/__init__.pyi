from .demo import run_demo as run_demo
