"""Other libraries' decoding, each library in a process of its own, called like our runners.

`catalogue` lists the peers and the messages between our process and a worker. `client` and `comparison` are our side;
`worker` and `libraries/*_peers` are the worker's. A worker's Python may lack our packages, so its modules import the
standard library, `catalogue` and the peer's own library only.
"""
