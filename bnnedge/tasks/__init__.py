"""Tasks by name. One file each; add a file and a line here, and the command line and the tests know it."""

from bnnedge.registry import Registry

TASKS = Registry(
    "task",
    [
        ("classification", "bnnedge.tasks.classification:Classification"),
    ],
)
