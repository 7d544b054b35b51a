"""The one error of ringing."""


class BrokerAway(Exception):
    """The broker takes nothing now."""
