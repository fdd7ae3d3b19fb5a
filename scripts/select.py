"""`mlflow run . -e select`: the command `catdog select`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["select", *sys.argv[1:]], prog_name="catdog")
