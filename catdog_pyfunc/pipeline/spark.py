"""Apache Spark: the session that `engine=` selects.

The workers need this package installed, and see files by the same path as the driver.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from catdog_pyfunc.errors import InvalidSetting, MissingDependency

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOCAL, SPARK = "local", "spark"
_MASTERS = ("spark://", "local[", "local-cluster[")
_BATCH_SETTING = "spark.sql.execution.arrow.maxRecordsPerBatch"
_BATCH_ROWS = "64"  # Spark's default of 10,000 would be 340 MB of small photos


def check_engine(engine: str) -> None:
    """Check a parameter `engine`.

    Args:
        engine: "local" (this process), "spark" (the active session, or Spark on this machine), or the URL of a master.

    Raises:
        InvalidSetting: It is something else.
    """
    if engine not in (LOCAL, SPARK) and not engine.startswith(_MASTERS):
        raise InvalidSetting(f"engine is {engine!r}; give {LOCAL}, {SPARK} or a master's URL, such as spark://host:7077")


@contextmanager
def session(engine: str) -> Iterator[SparkSession]:
    """The active Spark session, or one of its own that ends with the block; it hands images to Python in small batches.

    Args:
        engine: "spark", or the URL of a master.

    Yields:
        The session.

    Raises:
        InvalidSetting: There is an active session of another master.
        MissingDependency: pyspark is not installed.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise MissingDependency(f"engine {engine} needs pyspark: pip install 'catdog-pyfunc[spark]'") from error

    active = SparkSession.getActiveSession()
    if active and engine not in (SPARK, active.sparkContext.master):
        raise InvalidSetting(
            f"engine is {engine!r}, but the active Spark session has {active.sparkContext.master!r}; give {SPARK}"
        )
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # Spark's default is whatever `python3` is
    builder = SparkSession.builder.appName("catdog")
    spark = active or (builder if engine == SPARK else builder.master(engine)).getOrCreate()
    before = spark.conf.get(_BATCH_SETTING)
    spark.conf.set(_BATCH_SETTING, _BATCH_ROWS)
    try:
        yield spark
    finally:
        if active:
            spark.conf.set(_BATCH_SETTING, before)
        else:
            spark.stop()
