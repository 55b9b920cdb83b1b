"""The API: values, errors, statuses and their protobuf codec; generated stubs in v1."""
