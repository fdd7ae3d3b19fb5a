"""`mlflow run . -e history`: the command `catdog history`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["history", *sys.argv[1:]], prog_name="catdog")
