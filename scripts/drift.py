"""`mlflow run . -e drift`: the command `catdog drift`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["drift", *sys.argv[1:]], prog_name="catdog")
