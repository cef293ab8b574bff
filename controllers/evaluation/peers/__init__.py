"""The field beside us: other libraries' decoding, each in a process of its own, called like our runners.

`catalogue` names the peers, `messages` is what is said between us and a worker, `client` and `runner` are our side of
it, `worker` and the `*_peers` modules are the other one. What runs in a worker imports the standard library, `messages`
and `catalogue`, and the peer's own library, nothing else of ours: its Python may be one where we are not installed.
"""
