"""A Kafka that knows its users and what each of them may do, as production's does."""

from __future__ import annotations

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.support.kafka import KafkaCluster

USER, PASSWORD = "relay", "opensesame"

PROPERTIES = {
    "listener.security.protocol.map": "INTERNAL:PLAINTEXT,CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
    "listener.name.client.sasl.enabled.mechanisms": "PLAIN",
    "listener.name.client.plain.sasl.jaas.config": (
        f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    ),
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    # Brokers among themselves, and the tests' own clients, which come through the listener of the brokers.
    "super.users": "User:ANONYMOUS",
}


def guarded_cluster() -> KafkaCluster:
    """One broker, not started."""
    return KafkaCluster(properties=PROPERTIES)


def login(cluster: KafkaCluster, password: str = PASSWORD) -> dict[str, str]:
    """The properties of a client that logs in."""
    return {
        "bootstrap.servers": cluster.bootstrap,
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "PLAIN",
        "sasl.username": USER,
        "sasl.password": password,
    }


def variables(cluster: KafkaCluster, password: str = PASSWORD) -> dict[str, str]:
    """The same for a process of Relay's."""
    named = {name: value for name, value in login(cluster, password).items() if name != "bootstrap.servers"}
    by_name = {f"RELAY_KAFKA__{name.upper().replace('.', '_')}": value for name, value in named.items()}
    return {"RELAY_KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap, **by_name}


def allow(cluster: KafkaCluster, topic: str, *operations: AclOperation) -> None:
    """Lets the user do these things with a topic."""
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{cluster.brokers[0].internal_port}"})
    rules = [
        AclBinding(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{USER}", "*", operation,
            AclPermissionType.ALLOW,
        )
        for operation in operations
    ]  # fmt: skip
    for outcome in admin.create_acls(rules).values():
        outcome.result(30)
