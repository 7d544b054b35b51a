"""A child where namespaces are forbidden; run in place of the real one."""

from tests.unit.workers.retrieval.parsing.rogue import work
from workers.retrieval.parsing import parser_child
from workers.sandbox.channel import Channel


def main(channel: Channel) -> None:
    channel.missing = ("network_namespace",)
    parser_child.serve(channel, work)
