"""`catdog audit`, and `mlflow run . -e audit`."""

from __future__ import annotations

import click

from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.auditing.audit import TABLE, AuditResult, audit
from catdog_pyfunc.pipeline.auditing.config import AuditConfig
from catdog_pyfunc.pipeline.cli.options import build, options_from
from catdog_pyfunc.pipeline.console import text_table

_IMBALANCED = 10.0  # from where on training suffers: Buda et al., "A systematic study of the class imbalance problem", 2018


@click.command("audit")
@options_from(AuditConfig)
def command(**options: object) -> None:
    """Find wrong labels, duplicates, outliers and bad images."""
    config = build(AuditConfig, options)
    with tracking.run():
        result = audit(config)
    click.echo(_summary(result))
    click.echo(f"details in {config.output or TABLE} and in the galleries of run {result.run_id}")


def _summary(result: AuditResult) -> str:
    worst = result.table.drop_duplicates("kind").set_index("kind")
    rows = [
        [kind, str(count), f"{worst.path[kind]}: {worst.reason[kind]}"] for kind, count in result.counts.items() if count
    ]
    lines = [f"{result.images} images, {result.table['path'].nunique()} of them suspected"]
    lines += [text_table([["kind", "images", "first"], *rows])] if rows else []
    if result.imbalance >= _IMBALANCED:
        least, most = (choose(result.classes, key=lambda name: result.classes[name]) for choose in (min, max))
        lines.append(
            f"classes out of balance: {most} has {result.classes[most]} training images, {least} {result.classes[least]}"
        )
    return "\n".join(lines)
