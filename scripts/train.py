"""`mlflow run .`: the command `catdog train`."""

import sys

from catdog_pyfunc.pipeline.cli.main import catdog

if __name__ == "__main__":
    catdog(["train", *sys.argv[1:]], prog_name="catdog")
