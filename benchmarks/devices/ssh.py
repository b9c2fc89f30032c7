"""A machine that can be logged in to: files go there and rows come back through one connection of the ``ssh`` command.

Keys, agents, jump hosts and the rest are as in the user's own ``~/.ssh/config``; ``BNNEDGE_SSH`` replaces the command.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

from bnnedge import __version__
from bnnedge.benchmarks.devices.remote import agent
from bnnedge.benchmarks.devices.remote.remote_device import RemoteDevice
from bnnedge.errors import BenchmarkError, printable

_EXPECTED = "ssh://[USER@]HOST[:PORT][/PATH/TO/PYTHON]"
_ADDRESS = re.compile(
    r"(?P<login>([A-Za-z0-9_][\w.-]*@)?([A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+\]))(:(?P<port>\d{1,5}))?(?P<python>/.+)?"
)
_VENV = "~/.bnnedge"
_NEEDS = "ai-edge-litert flatbuffers numpy onnx onnxruntime pydantic rich"
_SSH_FAILED, _NO_SUCH_COMMAND = 255, 127  # exit codes of ssh itself and of the shell on the device


@dataclass(frozen=True)
class Address:
    """Where to log in and which Python to use there."""

    login: str
    """[USER@]HOST, as ``ssh`` takes it."""
    port: int | None = None
    python: str | None = None
    """The path of Python on the device; None for the one in ``~/.bnnedge`` if it exists, else ``python3``."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address ``text``, which is what follows ``ssh://``. Raises ``BenchmarkError``."""
        found = _ADDRESS.fullmatch(text)
        port = int(found["port"]) if found and found["port"] else None
        if found is None or (port is not None and not 0 < port < 65536):
            raise BenchmarkError(f"expected device {_EXPECTED}, found ssh://{printable(text)}")
        return cls(found["login"].replace("[", "").replace("]", ""), port, found["python"])

    def __str__(self) -> str:
        host = self.login.rpartition("@")[2]
        login = self.login.replace(host, f"[{host}]") if ":" in host else self.login
        return f"ssh://{login}" + ("" if self.port is None else f":{self.port}")

    def login_command(self) -> list[str]:
        """The command that logs in to the device."""
        port = [] if self.port is None else ["-p", str(self.port)]
        given = os.environ.get("BNNEDGE_SSH", "")
        try:
            command = shlex.split(given) or ["ssh"]
        except ValueError as error:
            raise BenchmarkError(
                f"BNNEDGE_SSH: expected a command as a shell takes it, found {printable(given)!r} ({error}); mend or "
                "unset it"
            ) from error
        return [*command, *port, self.login]

    def agent_command(self) -> list[str]:
        """The command that starts the agent on the device. It notices within a minute if the connection breaks."""
        there = f"exec {shlex.quote(self.python or '')} -m {agent.__name__}"
        if self.python is None:
            script = f'p={_VENV}/bin/python; [ -x "$p" ] || p=python3; exec "$p" -m {agent.__name__}'
            there = f"exec sh -c {shlex.quote(script)}"  # whatever the login shell is
        *command, login = self.login_command()
        return [*command, "-T", "-o", "ServerAliveInterval=15", login, there]


class SshDevice(RemoteDevice):
    """``ssh://[USER@]HOST[:PORT][/PATH/TO/PYTHON]``: a Linux machine with bnnedge, measured through ssh."""

    name = "ssh"

    def __init__(self, address: Address) -> None:
        self._ssh = address
        super().__init__(str(address), address.agent_command())

    @classmethod
    def open(cls, address: str) -> SshDevice:
        return cls(Address.parse(address))

    def why_no_agent(self, code: int, said: str) -> str:
        where = f"{self._ssh.python or 'python3'} on {self._ssh}"
        if code == _SSH_FAILED:
            return f"{self._ssh} cannot be reached ({said}); try: {shlex.join(self._ssh.login_command())}"
        if code == _NO_SUCH_COMMAND:
            return f"{where} cannot be started ({said}); name another: {_EXPECTED}"
        if "No module named" in said:
            return (
                f"{where} lacks bnnedge {__version__} or what it needs ({said}); there: python3 -m venv {_VENV} && "
                f"{_VENV}/bin/pip install {_NEEDS} && {_VENV}/bin/pip install --no-deps bnnedge-{__version__}-*.whl"
            )
        return f"{where} did not start bnnedge's agent ({said})"
