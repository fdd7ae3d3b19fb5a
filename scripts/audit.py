"""`mlflow run . -e audit`: the command `catdog audit`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["audit", *sys.argv[1:]], prog_name="catdog")
