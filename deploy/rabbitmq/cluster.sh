#!/bin/sh
# The command of each node of the cluster. Nodes know each other by the cookie in secrets/rabbitmq, which must be theirs alone.
set -eu
cookie=/var/lib/rabbitmq/.erlang.cookie
rm -f "$cookie"
install -m 400 /run/secrets/erlang.cookie "$cookie"
exec rabbitmq-server
