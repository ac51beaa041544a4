"""Would it work? Looks at settings, database and Kafka as `relay run` would meet them, and changes nothing."""
