"""Users and organisations of the loopback Hub, by their tokens."""

from loopback_hub import User

TOKEN = "hf_OfAliceWhoMayWrite"
USERS = {
    TOKEN: "alice",
    "hf_reader": User("alice", role="read"),
    "hf_fine": User("alice", role="fineGrained", scopes=("lab",)),
    "hf_bob": "bob",
}
ORGANISATIONS = {"lab": {"alice": "write"}, "library": {"alice": "read"}, "fair": {"alice": "contributor"}}
