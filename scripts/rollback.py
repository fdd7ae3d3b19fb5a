"""`mlflow run . -e rollback`: the command `catdog rollback`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["rollback", *sys.argv[1:]], prog_name="catdog")
