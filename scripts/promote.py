"""`mlflow run . -e promote`: the command `catdog promote`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["promote", *sys.argv[1:]], prog_name="catdog")
