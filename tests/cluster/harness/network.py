"""A network namespace for each cluster, and one link that leads to it from the machine.

Routes, iptables rules and addresses of a cluster live and die with its namespace; the machine sees
one pair of interfaces. So several clusters stand side by side, and nothing stays after one.
"""

from __future__ import annotations

import ipaddress
import subprocess
from dataclasses import dataclass
from pathlib import Path

LINKS = ipaddress.IPv4Network("10.245.0.0/16")
"""Clusters take networks of four addresses from here."""
SERVICE_RANGE = "10.96.0.0/16"
POD_RANGE = "10.244.0.0/16"
_NAMESPACES = Path("/run/netns")


@dataclass(frozen=True)
class Network:
    """The namespace of one cluster."""

    name: str

    @property
    def number(self) -> int:
        """Which of the clusters of this machine this is."""
        return int(self.name.removeprefix("genai-"))

    @property
    def gateway(self) -> str:
        """The machine's own end of the link."""
        return str(LINKS[4 * self.number + 1])

    @property
    def address(self) -> str:
        """Where the cluster's processes are reached, from the machine and from pods alike."""
        return str(LINKS[4 * self.number + 2])

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command to run it inside; its process id stays the command's."""
        # Not `ip netns exec`: that mounts another /sys, and containerd would lose the cgroups.
        return ("nsenter", f"--net={_NAMESPACES / self.name}", "--")

    @staticmethod
    def create() -> Network:
        """Take the first number that is free and bring the link up."""
        for number in range(1, 1 << 14):
            network = Network(f"genai-{number}")
            made = subprocess.run(
                ["ip", "netns", "add", network.name], check=False, capture_output=True
            )
            if made.returncode == 0:
                network._link()
                return network
        raise RuntimeError("no network namespace could be made: is this process root?")

    def remove(self) -> None:
        """Delete namespace and link; harmless when they are gone."""
        for command in (
            ["ip", "link", "del", f"genai{self.number}"],
            ["ip", "netns", "del", self.name],
        ):
            subprocess.run(command, check=False, capture_output=True)

    def _link(self) -> None:
        outside, inside = f"genai{self.number}", f"genai{self.number}-in"
        for command in (
            ["ip", "link", "add", outside, "type", "veth", "peer", "name", inside],
            ["ip", "link", "set", inside, "netns", self.name],
            ["ip", "addr", "add", f"{self.gateway}/30", "dev", outside],
            ["ip", "link", "set", outside, "up"],
            [*self.prefix, "ip", "link", "set", "lo", "up"],
            [*self.prefix, "ip", "addr", "add", f"{self.address}/30", "dev", inside],
            [*self.prefix, "ip", "link", "set", inside, "up"],
            # An unknown service address is refused here and at once. There is no default route:
            # no packet of a pod leaves for the world.
            [*self.prefix, "ip", "route", "add", "local", SERVICE_RANGE, "dev", "lo"],
            [*self.prefix, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"],
        ):
            subprocess.run(command, check=True, capture_output=True)
