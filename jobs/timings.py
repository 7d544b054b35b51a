"""Constants of time that are not settings: operators do not tune them, and tests shorten them.

A process's context (`workers.runtime.context.Context`, `api.deps.Services`) holds one `Timings`; what has no context
takes it, or the one number that it needs, as an argument. A test passes `replace(Timings(), field=...)`; no test
patches a constant. All values are seconds. A field stands below the room that reads it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds between looks, until something counts as gone, and at most for one piece of work."""

    # workers.engines.http: OpenAI-compatible servers
    http_watch: float = 0.25  # between looks at whether a server's list of models is due
    http_first_list: float = 2.0  # until a server that has never listed its models is asked again
    http_relist: float = 30.0  # until a server is asked again: it may load other models
    http_first_backoff: float = 0.25  # after the first 429 without a Retry-After; doubled for each further one

    # jobs.db
    connection_fresh: float = 1.0  # after its last use a connection to PostgreSQL is taken to be there
    connection_lost: float = 35.0  # without a byte, though the server is there: it ends a statement after 30
    writer_yield: float = 0.3  # for which a process that is not urgent lets others write first
    writer_ignore: float = 1.0  # for which it does not wait again for an urgent process that did not come
    writer_turn: float = 0.02  # for which a process that may write lets others of its threads in
    writer_pause: float = 0.0015  # of a process after its turn: longer than others take to look

    # jobs.inference: the API's end of interactive requests
    interactive_present: float = 10.0  # for which a client counts as present after its API has said so
    interactive_renew: float = 2.0  # until its API says so again
    interactive_taken: float = 2.0  # between looks at whether a request was taken
    interactive_late: float = 2.0  # between signs that nothing was answered yet
    interactive_silence: float = 12.0  # of a worker until it counts as lost: six times `interactive_alive`

    # workers.runtime
    heartbeat_look: float = 1.0  # between looks at the states of the held jobs
    engine_busy: float = 8.0  # that a shard waits in place for a busy engine before it is released,
    engine_busy_in_progress: float = 600.0  # and while other lines of it are being answered, which would be lost
    engine_loop_end: float = 0.5  # that what still runs when the engines' loop ends is waited for, each time

    # workers.dispatcher
    dispatch_tick: float = 0.1  # between full looks at what is due
    dispatch_idle: float = 1.0  # between full looks while nothing was written
    cancel_grace: float = 3.0  # for workers to end what they hold of a cancelled job: then it is taken from them
    dependents_pass: float = 0.5  # for jobs whose predecessors have ended: meanwhile nothing is published
    retention_pass: float = 2.0  # of one pass in one go: the dispatcher does nothing else meanwhile
    retention_more: float = 0.5  # of going on with it
    orphans_look: float = 0.1  # of going on looking for orphans, each time

    # workers.webhooks
    deliveries_idle: float = 5.0  # without anything due until the loop ends
    deliveries_grace: float = 2.0  # for requests in flight, once the loop is to stop

    # workers.sinks
    sink_look: float = 2.0  # between looks at whether a system of the operator lacks events

    # workers.inference: requests of interactive clients
    events_patience: float = 5.0  # for a round trip to Redis, and for all that is left to publish of a response
    interactive_alive: float = 2.0  # between the signs of life of a request that is being answered
    interactive_look: float = 0.25  # between looks at whether clients are still there
    interactive_take: float = 1.0  # that Redis may wait for the next request of a queue
    interactive_retry: float = 1.0  # until a server that was unavailable is asked again
    interactive_limit_look: float = 0.05  # between looks at a limit that is reached and may rise

    # workers.finetuning
    training_stop: float = 12.0  # for a checkpoint of a worker that is to stop: it is killed after 20
    tracking_look: float = 2.0  # between looks at whether steps are due at an experiment tracker
    capability_check: float = 20.0  # after the start, until a worker looks at what it can train
    examination_retry: float = 2.0  # while another process of this host examines training files
    training_limit: float = 120.0  # for a checkpoint of a training that has reached a limit
    training_turn: float = 1800.0  # of a training while a job of another project waits for a trainer

    # workers.middleware: tuned models, the cache, and answers checked against a schema
    tuned_model_look: float = 1.0  # between looks at whether a tuned model is still served to a project
    cache_gather: float = 0.5  # that writes are gathered for one transaction
    cache_patience: float = 1.0  # for a look-up; then what was asked for is computed
    schema_check: float = 5.0  # for the texts of one answer
    python_grader: float = 120.0  # for the code of one item
    item_grading: float = 120.0  # for all graders of one item together
    schema_slow: float = 1.0  # what took less is not counted: a batch may have a million answers, checked at once
    schema_budget: float = 20.0  # of each minute, for what is slow of one project

    # workers.engines
    quiet_look: float = 5.0  # between looks at whether the machine is quiet enough to measure on it
    quiet_patience: float = 3600.0  # with a machine that is never quiet

    tuned_turn: float = 60.0  # of a whole tuned model while others wait for the engine
    tuned_retry: float = 30.0  # until one that could not be opened is tried again, once and then twice as long
    tuned_rest: float = 600.0  # for which one is refused that could not be opened three times

    # workers.vectors
    vectors_retry: float = 30.0  # of beginning again after a race that was lost against another process
    vectors_connect: float = 3.0  # to a server
    vectors_query: float = 10.0
    vectors_insert: float = 30.0

    # workers.retrieval
    sync_shift: float = 30.0  # of one sync in one go: others wait for this process
    source_fetch: float = 60.0  # for fetching one URL of a source
    source_settled: float = 2.0  # a file that changed so lately may change again without looking different

    # workers.evals
    sandbox_retry: float = 10.0  # until a probe of the sandbox that gave no answer is made again
    grading_shift: float = 30.0  # of one shard in one go: others wait for this process

    # workers/lifecycle
    storage_retry: float = 10.0  # before a failed write to storage is tried again
    database_retry: float = 5.0  # before a database that could not be read is read again
    slot_retry: float = 1.0  # before a shard for which there is no room is published again

    # api, for requests
    head_patience: float = 20.0  # for the head of a request, or for the rest of a body that was refused
    body_patience: float = 60.0  # without a byte, until a body is given up
    thread_patience: float = 5.0  # that a request waits for a thread of its project
    computation_patience: float = 5.0  # that it waits for a slot for a child process
    trusted: float = 2.0  # that a good answer of SQL holds: who has a key, who serves a model

    # api.pages and `nightmill up`
    sign_in_link: float = 900.0  # for which a link that signs in to the console can be used
    provider_keys: float = 10.0  # between two fetches of the keys of the identity provider

    # api.inference
    first_chunk_patience: float = 15.0  # until a stream without a chunk has its status: some proxies wait for 30
    key_look: float = 2.0  # between looks at the key that a request came with
    conversation_patience: float = 2.0  # that a change waits for others in its process
    response_look: float = 0.5  # between looks at a response in the background
    response_keep_alive: float = 2.0  # without an event of it

    # api.retrieval
    query_rewrite: float = 5.0  # for rewriting a query; then it is searched as it is

    # api.server and api.inference.response_connections: WebSockets
    connection_ping: float = 20.0  # between pings: proxies close a connection that is silent for longer
    connection_pong: float = 60.0  # until a client that has not answered a ping counts as gone
    connection_lifetime: float = 3600.0  # of a connection, as at OpenAI

    # api.jobs
    job_look: float = 0.5
    job_keep_alive: float = 15.0

    # api.health
    readiness_cached: float = 1.0
    metrics_cached: float = 5.0

    # cli: the command beside a server that may be restarted
    follow_look: float = 0.5  # between looks at a job that is watched
    follow_patience: float = 120.0  # with a server that is unavailable while a job is watched
    download_retry: float = 1.0
    download_patience: float = 60.0  # with a server that is unavailable while a file is downloaded
    detach_look: float = 0.2  # between looks at whether `up --detach` takes requests
    detach_patience: float = 180.0
    down_patience: float = 20.0  # with a supervisor that is to end, beyond the time after which it kills what runs
    logs_look: float = 0.2  # between looks at logs that are followed
