#!/bin/sh
# The command of each node of the cluster. The cookie in secrets/rabbitmq authenticates nodes; no other process may read it.
set -eu
cookie=/var/lib/rabbitmq/.erlang.cookie
rm -f "$cookie"
install -m 400 /run/secrets/erlang.cookie "$cookie"
if [ "$(hostname)" = rabbitmq ]; then # the node that starts last declares all queues, and leads them: spread the leaders
  (
    until rabbitmqctl --quiet await_online_nodes 3 --timeout 600; do sleep 5; done 2> /dev/null
    sleep 15
    rabbitmq-queues --quiet rebalance quorum
  ) &
fi
exec rabbitmq-server
