"""`mlflow run . -e register`: the command `catdog register`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["register", *sys.argv[1:]], prog_name="catdog")
