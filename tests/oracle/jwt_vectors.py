"""Prints what Snowflake's own connector signs, and where dbt sends it, for every way to spell an account.

Run with the Python of the dbt-snowflake environment that `cargo verify -- provision` makes:

    python tests/oracle/jwt_vectors.py > tests/fixtures/snowflake/jwt_vectors.json

The connector runs up to the point where the token is made; nothing is sent. `host` is what dbt-snowflake connects to (it turns
`_` into `-` first), in lower case, because hosts have no case; the token is the connector's for the account as written.
"""

import json
import pathlib
import warnings

warnings.filterwarnings("ignore")

import jwt
import snowflake.connector
from cryptography.hazmat.primitives import serialization
from dbt.adapters.snowflake import SnowflakeCredentials
from snowflake.connector.auth import AuthByKeyPair

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "snowflake"

# Organization and account; with the underscore that a host cannot have; private link; the older locators with region and cloud,
# China and its own top-level domain; connections with the external id that `.global` stands for. Each also in another case.
ACCOUNTS = [
    "myorg-myacct",
    "MYORG-MYACCT",
    "MyOrg-MyAcct",
    "myorg-my_acct",
    "my_org-my_acct_2",
    "MYORG-MY_ACCT.privatelink",
    "myorg-myacct.privatelink",
    "myorg-my-acct",
    "xy12345",
    "XY12345",
    "xy12345.us-east-1",
    "XY12345.US-EAST-1",
    "xy12345.us-west-2",
    "xy12345.east-us-2.azure",
    "xy12345.europe-west4.gcp",
    "xy12345.us-gov-west-1.aws",
    "xy12345.eu-central-1.privatelink",
    "xy12345.cn-north-1",
    "xy12345.cn-northwest-1.aws",
    "XY12345.CN-NORTH-1",
    "conn1-a1b2c3.global",
    "CONN1-A1B2C3.global",
    "my-conn-a1b2c3.global",
    "conn_1-a1b2c3.global",
]

# The broker's own, one that a lease has, and a login name that is no plain identifier.
USERS = ["kdbt_svc", "KDBT_ALICE_0", "Svc.Kdbt@acme.example"]


class Prepared(Exception):
    """What the connector would have logged in with."""


class Stop(AuthByKeyPair):
    def prepare(self, *, conn, **kwargs):
        raise Prepared(conn.host, super().prepare(conn=conn, **kwargs))


def prepared(account, user, key):
    """The host and the claims of a login with this account."""
    try:
        snowflake.connector.connect(account=account, user=user, auth_class=Stop(key))
    except Prepared as login:
        host, token = login.args
        return host, jwt.decode(token, options={"verify_signature": False})


def host(account, user, key):
    """The host that dbt connects to."""
    credentials = SnowflakeCredentials(account=account, user=user, database="d", schema="s")
    return prepared(credentials.account, user, key)[0].lower()


def vector(account, user, name):
    pem = (FIXTURES / f"key_{name}.p8").read_bytes()
    key = serialization.load_pem_private_key(pem, password=None)
    _, claims = prepared(account, user, key)
    assert claims["exp"] - claims["iat"] == 60
    return {
        "account": account,
        "user": user,
        "host": host(account, user, key),
        "jwt_account": claims["sub"].partition(".")[0],
        "iss": claims["iss"],
        "sub": claims["sub"],
        "fingerprint": AuthByKeyPair.calculate_public_key_fingerprint(key),
        "key": name,
    }


vectors = [vector(account, USERS[0], "a") for account in ACCOUNTS]
vectors += [vector(ACCOUNTS[0], user, "b") for user in USERS]
print(json.dumps(vectors, indent=2))
