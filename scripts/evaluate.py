"""`mlflow run . -e evaluate`: the command `catdog evaluate`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["evaluate", *sys.argv[1:]], prog_name="catdog")
