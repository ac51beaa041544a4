"""What each error of Kafka is about, in one table: the record, the topic, the cluster, our credentials or our host.

A test compares the table with the codes that the client library knows, so a new code cannot slip in unclassified. Only
an error that is about the record itself may cost the record anything; all others cost time.
"""

from __future__ import annotations

from enum import Enum

from confluent_kafka import KafkaError

from relay.core.event import Outcome


class About(Enum):
    """What has to change before the same row can be delivered."""

    RECORD = "record"
    """The record itself: Kafka would refuse it again."""
    NEIGHBOUR = "neighbour"
    """Another record of the same batch, or our own decision not to send it: this one was not appended."""
    TOPIC = "topic"
    """The topic or the partition: missing, not allowed, without a leader or without enough replicas."""
    CLUSTER = "cluster"
    """The cluster or the way to it. Not knowing is part of this: the record may have arrived."""
    CREDENTIALS = "credentials"
    """Who we are, or what we may do in the whole cluster."""
    HOST = "host"
    """This machine or this configuration: its clock, its memory, its name service."""
    PRODUCER = "producer"
    """This one producer: another one may go on."""
    OTHER = "other"
    """Consumers, groups, transactions and administration: no producer of ours is told this."""


RECORD = {
    "MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_RECORD", "INVALID_MSG", "INVALID_MSG_SIZE",
    "POLICY_VIOLATION", "_INVALID_ARG", "_BAD_MSG", "_KEY_SERIALIZATION", "_VALUE_SERIALIZATION",
}  # fmt: skip

NEIGHBOUR = {"_INVALID_DIFFERENT_RECORD", "_PURGE_QUEUE"}

TOPIC = {
    "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "UNKNOWN_TOPIC_OR_PART", "UNKNOWN_TOPIC_ID", "INCONSISTENT_TOPIC_ID",
    "TOPIC_EXCEPTION", "TOPIC_AUTHORIZATION_FAILED", "INVALID_PARTITIONS", "LEADER_NOT_AVAILABLE",
    "NOT_LEADER_FOR_PARTITION", "FENCED_LEADER_EPOCH", "UNKNOWN_LEADER_EPOCH", "REPLICA_NOT_AVAILABLE",
    "NOT_ENOUGH_REPLICAS", "NOT_ENOUGH_REPLICAS_AFTER_APPEND", "_ISR_INSUFF", "KAFKA_STORAGE_ERROR",
    "LOG_DIR_NOT_FOUND", "UNSUPPORTED_FOR_MESSAGE_FORMAT", "UNSUPPORTED_COMPRESSION_TYPE",
    "ELIGIBLE_LEADERS_NOT_AVAILABLE", "PREFERRED_LEADER_NOT_AVAILABLE",
}  # fmt: skip

CLUSTER = {
    "UNKNOWN", "REQUEST_TIMED_OUT", "BROKER_NOT_AVAILABLE", "STALE_CTRL_EPOCH", "NETWORK_EXCEPTION",
    "NOT_CONTROLLER", "INVALID_REQUEST", "UNSUPPORTED_VERSION", "THROTTLING_QUOTA_EXCEEDED", "LISTENER_NOT_FOUND",
    "STALE_BROKER_EPOCH", "REBOOTSTRAP_REQUIRED", "UNKNOWN_CONTROLLER_ID", "_TRANSPORT", "_TIMED_OUT",
    "_TIMED_OUT_QUEUE", "_MSG_TIMED_OUT", "_ALL_BROKERS_DOWN", "_PURGE_INFLIGHT", "_FAIL", "_RETRY", "_WAIT_CACHE",
    "_UNKNOWN_BROKER", "_UNKNOWN_PROTOCOL", "_UNSUPPORTED_FEATURE", "_NODE_UPDATE", "_DESTROY_BROKER",
    "_BAD_COMPRESSION", "_UNDERFLOW", "_PARTIAL", "_OUTDATED", "_INTR",
}  # fmt: skip

CREDENTIALS = {
    "CLUSTER_AUTHORIZATION_FAILED", "UNSUPPORTED_SASL_MECHANISM", "ILLEGAL_SASL_STATE", "SECURITY_DISABLED",
    "SASL_AUTHENTICATION_FAILED", "DELEGATION_TOKEN_AUTH_DISABLED", "DELEGATION_TOKEN_NOT_FOUND",
    "DELEGATION_TOKEN_OWNER_MISMATCH", "DELEGATION_TOKEN_REQUEST_NOT_ALLOWED",
    "DELEGATION_TOKEN_AUTHORIZATION_FAILED", "DELEGATION_TOKEN_EXPIRED", "INVALID_PRINCIPAL_TYPE",
    "PRINCIPAL_DESERIALIZATION_FAILURE", "UNACCEPTABLE_CREDENTIAL", "_AUTHENTICATION", "_SSL",
}  # fmt: skip

HOST = {
    # A record's time is that of the database, so a wrong clock is ours and not the record's.
    "INVALID_TIMESTAMP",
    "INVALID_REQUIRED_ACKS", "INVALID_CONFIG", "_RESOLVE", "_CRIT_SYS_RESOURCE", "_FS", "_QUEUE_FULL",
    "_NOT_IMPLEMENTED", "_NOT_CONFIGURED", "_CONFLICT",
}  # fmt: skip

PRODUCER = {
    "_FATAL", "_STATE", "_DESTROY", "_FENCED", "_GAPLESS_GUARANTEE", "_INCONSISTENT", "OUT_OF_ORDER_SEQUENCE_NUMBER",
    "DUPLICATE_SEQUENCE_NUMBER", "INVALID_PRODUCER_EPOCH", "INVALID_PRODUCER_ID_MAPPING", "UNKNOWN_PRODUCER_ID",
    "PRODUCER_FENCED",
}  # fmt: skip

OTHER = {
    "NO_ERROR", "OFFSET_OUT_OF_RANGE", "OFFSET_METADATA_TOO_LARGE", "COORDINATOR_LOAD_IN_PROGRESS",
    "COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR", "ILLEGAL_GENERATION", "INCONSISTENT_GROUP_PROTOCOL",
    "INVALID_GROUP_ID", "UNKNOWN_MEMBER_ID", "INVALID_SESSION_TIMEOUT", "REBALANCE_IN_PROGRESS",
    "INVALID_COMMIT_OFFSET_SIZE", "GROUP_AUTHORIZATION_FAILED", "TOPIC_ALREADY_EXISTS", "INVALID_REPLICATION_FACTOR",
    "INVALID_REPLICA_ASSIGNMENT", "INVALID_TXN_STATE", "INVALID_TRANSACTION_TIMEOUT", "CONCURRENT_TRANSACTIONS",
    "TRANSACTION_COORDINATOR_FENCED", "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "OPERATION_NOT_ATTEMPTED",
    "REASSIGNMENT_IN_PROGRESS", "NON_EMPTY_GROUP", "GROUP_ID_NOT_FOUND", "FETCH_SESSION_ID_NOT_FOUND",
    "INVALID_FETCH_SESSION_EPOCH", "TOPIC_DELETION_DISABLED", "OFFSET_NOT_AVAILABLE", "MEMBER_ID_REQUIRED",
    "GROUP_MAX_SIZE_REACHED", "FENCED_INSTANCE_ID", "ELECTION_NOT_NEEDED", "NO_REASSIGNMENT_IN_PROGRESS",
    "GROUP_SUBSCRIBED_TO_TOPIC", "UNSTABLE_OFFSET_COMMIT", "RESOURCE_NOT_FOUND", "DUPLICATE_RESOURCE",
    "INCONSISTENT_VOTER_SET", "INVALID_UPDATE_VERSION", "FEATURE_UPDATE_FAILED", "FENCED_MEMBER_EPOCH",
    "UNRELEASED_INSTANCE_ID", "UNSUPPORTED_ASSIGNOR", "STALE_MEMBER_EPOCH", "MISMATCHED_ENDPOINT_TYPE",
    "UNSUPPORTED_ENDPOINT_TYPE", "UNKNOWN_SUBSCRIPTION_ID", "TELEMETRY_TOO_LARGE", "INVALID_REGISTRATION",
    "TRANSACTION_ABORTABLE", "INVALID_RECORD_STATE", "SHARE_SESSION_NOT_FOUND", "INVALID_SHARE_SESSION_EPOCH",
    "FENCED_STATE_EPOCH", "INVALID_VOTER_KEY", "DUPLICATE_VOTER", "VOTER_NOT_FOUND", "INVALID_REGULAR_EXPRESSION",
    "STREAMS_INVALID_TOPOLOGY", "STREAMS_INVALID_TOPOLOGY_EPOCH", "STREAMS_TOPOLOGY_FENCED",
    "SHARE_SESSION_LIMIT_REACHED", "_APPLICATION", "_ASSIGNMENT_LOST", "_ASSIGN_PARTITIONS", "_AUTO_OFFSET_RESET",
    "_EXISTING_SUBSCRIPTION", "_INVALID_TYPE", "_IN_PROGRESS", "_KEY_DESERIALIZATION", "_LOG_TRUNCATION",
    "_MAX_POLL_EXCEEDED", "_NOENT", "_NOOP", "_NO_OFFSET", "_PARTITION_EOF", "_PREV_IN_PROGRESS", "_READ_ONLY",
    "_REVOKE_PARTITIONS", "_UNKNOWN_GROUP", "_VALUE_DESERIALIZATION", "_WAIT_COORD",
}  # fmt: skip

TABLE: dict[About, set[str]] = {
    About.RECORD: RECORD,
    About.NEIGHBOUR: NEIGHBOUR,
    About.TOPIC: TOPIC,
    About.CLUSTER: CLUSTER,
    About.CREDENTIALS: CREDENTIALS,
    About.HOST: HOST,
    About.PRODUCER: PRODUCER,
    About.OTHER: OTHER,
}

# An older client library lacks some of the names.
_ABOUT: dict[int, About] = {
    getattr(KafkaError, name): about for about, names in TABLE.items() for name in names if hasattr(KafkaError, name)
}

_OUTCOMES = {About.RECORD: Outcome.REFUSED, About.NEIGHBOUR: Outcome.HELD, About.TOPIC: Outcome.TOPIC}


def about(code: int) -> About:
    """Returns what an error code is about. A code that is not in the table says nothing about the record."""
    return _ABOUT.get(code, About.CLUSTER)


def outcome_of(error: KafkaError | None) -> Outcome:
    """Returns the outcome of a row by its delivery report.

    Whatever is about neither the record nor its topic counts no attempt. Because a time-out does not prove a failure,
    the row may have arrived.
    """
    if error is None:
        return Outcome.DELIVERED
    return _OUTCOMES.get(about(error.code()), Outcome.UNKNOWN)
