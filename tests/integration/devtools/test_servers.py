from __future__ import annotations

import pytest

from devtools.servers import PostgresServer, S3Server


def test_postgresql_answers_on_loopback_to_its_password_alone(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg2

    for name, value in postgres_server.environment.items():
        monkeypatch.setenv(name, value)
    connection = psycopg2.connect("")
    try:
        with connection.cursor() as cursor:
            for setting, expected in (("listen_addresses", "127.0.0.1"), ("unix_socket_directories", "")):
                cursor.execute("SELECT current_setting(%s)", [setting])
                assert cursor.fetchone() == (expected,)
            cursor.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules")
            assert cursor.fetchall() == [("scram-sha-256",)]
    finally:
        connection.close()
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect("")


def test_s3_answers_to_its_keys_alone(s3_server: S3Server) -> None:
    from dataclasses import replace

    from botocore.exceptions import ClientError

    assert s3_server.client().list_buckets()["ResponseMetadata"]["HTTPStatusCode"] == 200
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        replace(s3_server, secret="wrong").client().list_buckets()
