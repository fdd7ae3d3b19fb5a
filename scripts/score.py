"""`mlflow run . -e score`: the command `catdog score`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["score", *sys.argv[1:]], prog_name="catdog")
