"""The doses, by id, in the order in which they run."""

from tests.chaos.doses import backups, brokers, clients, hooks, intake, large, lines, network, vectors, versions
from tests.chaos.doses.dose import Run

DOSES: dict[str, Run] = {
    "F2": large.one_batch,
    "F6": brokers.valkey_lost,
    "F6-distributed": brokers.rabbit_lost,
    "F7": brokers.valkey_killed,
    "F7-half-open": brokers.valkey_half_open,
    "F7-half-open-distributed": brokers.rabbit_half_open,
    "F7-half-open-postgres": brokers.postgres_half_open,
    "F8": brokers.valkey_full,
    "F8-distributed": brokers.rabbit_full,
    "F9-killed": intake.postgres_killed,
    "F9-frozen": intake.postgres_frozen,
    "F9-held": intake.sqlite_held,
    "F11": intake.web_killed,
    "F11-committed": intake.web_dies_before_its_answer,
    "F13": lines.broken_answers,
    "F14": lines.poisonous_line,
    "F15": hooks.bad_receivers,
    "F16": hooks.sender_killed,
    "F18": lines.cancelled,
    "F19": vectors.weaviate_fails,
    "F20": network.bad_network,
    "F20-distributed": network.bad_network_distributed,
    "F21": clients.slow_clients,
    "F22": versions.upgraded,
    "F22-mixed": versions.mixed,
    "F23": backups.sqlite_restored,
    "F23-postgres": backups.postgres_restored,
}
