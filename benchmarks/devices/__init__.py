"""Machines that files are measured on, by name."""

from bnnedge.registry import Registry

DEVICES = Registry(
    "device",
    [
        ("local", "bnnedge.benchmarks.devices.local:LocalDevice"),
        ("ssh", "bnnedge.benchmarks.devices.ssh:SshDevice"),
    ],
)
