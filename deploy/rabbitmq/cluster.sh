#!/bin/sh
# The command of each node of the cluster. The cookie in secrets/rabbitmq authenticates nodes; no other process may read it.
set -eu
cookie=/var/lib/rabbitmq/.erlang.cookie
rm -f "$cookie"
install -m 400 /run/secrets/erlang.cookie "$cookie"
exec rabbitmq-server
