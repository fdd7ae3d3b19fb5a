"""`mlflow run . -e predict`: the command `catdog predict`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["predict", *sys.argv[1:]], prog_name="catdog")
