"""A stand-in for `pyspark.sql.types`, enough for MLflow's conversion of predictions to Spark columns: pyspark has 490 MB."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass


class DataType:
    def simpleString(self) -> str:  # noqa: N802 - Spark's name
        return type(self).__name__


@dataclass
class StructField:
    name: str
    dataType: DataType  # noqa: N815 - Spark's name
    nullable: bool = True


@dataclass
class StructType(DataType):
    fields: Sequence[StructField]

    def fieldNames(self) -> list[str]:  # noqa: N802 - Spark's name
        return [field.name for field in self.fields]

    def __getitem__(self, name: str) -> StructField:
        return next(field for field in self.fields if field.name == name)


def modules() -> dict[str, types.ModuleType]:
    """The modules to put into `sys.modules`."""
    sql_types = types.ModuleType("pyspark.sql.types")
    names = "Integer Long Float Double String Boolean Binary Timestamp Array Map Variant Byte Short"
    for name in names.split():
        setattr(sql_types, f"{name}Type", type(f"{name}Type", (DataType,), {}))
    sql_types.DataType, sql_types.StructField, sql_types.StructType = DataType, StructField, StructType  # type: ignore[attr-defined]
    sql = types.ModuleType("pyspark.sql")
    pyspark = types.ModuleType("pyspark")
    sql.types, pyspark.sql = sql_types, sql  # type: ignore[attr-defined]
    return {"pyspark": pyspark, "pyspark.sql": sql, "pyspark.sql.types": sql_types}
