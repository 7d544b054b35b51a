"""A child where namespaces are forbidden; run in place of the real one."""

from tests.unit.workers.parsing.rogue import work
from workers.parsing import child
from workers.sandbox.channel import Channel


def main(channel: Channel) -> None:
    channel.missing = ("network_namespace",)
    child.serve(channel, work)
