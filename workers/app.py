"""The Celery app: it receives messages, nothing else. SQL owns state; Celery never decides.

Messages carry ids and are acknowledged at once: a message is a message, and one that is lost is published again. So
there is no result backend, no retry, no ETA, no chord, and nothing that a broker could forget or repeat to harm.
"""

import logging
import os
from typing import Any
from urllib.parse import quote

from celery import Celery, current_app
from celery.apps import worker as celery_worker
from celery.utils import nodenames
from kombu.entity import Exchange
from kombu.entity import Queue as KombuQueue
from kombu.exceptions import OperationalError

from jobs.queues import Queue
from jobs.settings import Settings

log = logging.getLogger(__name__)
SOCKET = "valkey.sock"
SILENT_SECONDS = 5
_EXCHANGE = Exchange("nightmill", type="direct", durable=True)
#: One retry at once, for a connection that was just lost. By default kombu waits six seconds for an absent broker,
#: while the dispatcher has maintenance to run.
_TRIES = {"max_retries": 1, "interval_start": 0.2}
#: Redis transport: timeouts everywhere (the default waits for ever), and no re-sending, which duplicates.
_REDIS = {
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "retry_on_timeout": False,
    "health_check_interval": 10,
    "ack_emulation": False,  # acknowledging later takes two more round trips; lost messages are published again
    "global_keyprefix": "nightmill:",
}

#: Options for RabbitMQ. A message counts as published when the server has confirmed it. A wait for the confirmation, or
#: for the end of the connection, is limited: the default waits for ever, and so did the dispatcher and the workers.
_RABBIT = {"confirm_publish": True, "read_timeout": SILENT_SECONDS, "write_timeout": SILENT_SECONDS}


def broker_url(config: Settings) -> str:
    """Return the URL of the broker: the one set, or the embedded Valkey's socket."""
    return config.broker_url or f"redis+socket://{quote(str(config.data_dir.absolute() / SOCKET))}"


#: We publish nothing for later, which is all that it warns of on RabbitMQ.
logging.getLogger("kombu.transport.native_delayed_delivery").setLevel(logging.ERROR)


def build(config: Settings, extra_queues: tuple[str, ...] = (), *, threads: bool = False) -> Celery:
    """Build the app of this process with every queue declared, so that a misspelt name creates none."""
    app = Celery("nightmill")
    names = [queue.value for queue in Queue] + [name for name in extra_queues if name not in set(Queue)]
    app.conf.update(
        broker_url=broker_url(config),
        broker_transport_options=_transport(broker_url(config)),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # wait for a broker whose disk is full, and keep the engine
        broker_pool_limit=10,
        broker_pool_acquire_timeout=2,
        broker_heartbeat=10,
        task_queues=[queue(name, broker_url(config)) for name in names],
        task_default_queue=Queue.PLAN.value,
        task_default_exchange="nightmill",
        task_create_missing_queues=False,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_ignore_result=True,
        result_backend=None,
        task_track_started=False,
        task_serializer="json",
        accept_content=["json"],
        task_publish_retry=False,
        task_send_sent_event=False,
        worker_send_task_events=False,  # three messages for each task; Flower switches them on
        worker_pool="workers.runtime.celery_overrides:TaskPool" if threads else "prefork",
        worker_consumer="workers.runtime.celery_overrides:Consumer",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=_is_redis(broker_url(config)),
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=60,  # a spawned child imports everything: seconds on a busy machine
        worker_max_tasks_per_child=2000,  # a new child costs a second of CPU, which is a hundred small jobs
        worker_max_memory_per_child=600_000,  # KiB: recycled after the task, not a guard
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_soft_shutdown_timeout=5,
        worker_enable_soft_shutdown_on_idle=False,
    )
    return app


def work(app: Celery, name: str, queues: tuple[str, ...], concurrency: int) -> None:
    """Run the Celery worker `name` of this process until it is told to stop."""
    app.set_default()
    celery_worker.safe_say = lambda *_: None  # it would write plain text when it is told to stop
    common = ["--without-mingle", "--without-gossip", "--loglevel=WARNING", f"--hostname={_node(name)}"]
    options = [f"--queues={','.join(queues)}", *common, f"--concurrency={concurrency}"]
    app.worker_main(["--quiet", "worker", *options])  # quiet: it would print a banner


def consume(name: str, queues: tuple[str, ...], active: bool) -> bool:
    """Start or stop the consumption of `queues` by this process's Celery; return False if the broker is unavailable."""
    change = current_app.control.add_consumer if active else current_app.control.cancel_consumer
    try:
        for queue in queues:
            change(queue, destination=[_node(name)])
    except (OperationalError, OSError):
        log.warning("broker_unavailable")
        return False
    return True


def queue(name: str, url: str) -> KombuQueue:
    """Declare a queue: durable, on RabbitMQ a quorum queue."""
    arguments: dict[str, Any] = {} if _is_redis(url) else {"x-queue-type": "quorum"}
    return KombuQueue(name, _EXCHANGE, routing_key=name, durable=True, queue_arguments=arguments)


def _node(name: str) -> str:
    return str(nodenames.host_format(f"{name}-{os.getpid()}@%h"))


def _transport(url: str) -> dict[str, Any]:
    return _TRIES | (_REDIS if _is_redis(url) else _RABBIT)


def _is_redis(url: str) -> bool:
    return url.startswith(("redis", "rediss", "valkey"))
