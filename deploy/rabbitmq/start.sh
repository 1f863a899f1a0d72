#!/bin/sh
# The command of the RabbitMQ container: the server, and gliaflow's policies once it is up.
#
# Not `load_definitions`: a node that finds definitions to load on its first boot makes no default user, so user and
# password would have to stand in that file. A policy also applies to queues that were there before it.
set -eu
(
  # the server makes the cookie that rabbitmqctl shows it; asked earlier, rabbitmqctl would make another
  until [ -s /var/lib/rabbitmq/.erlang.cookie ] && rabbitmqctl --quiet await_startup --timeout 60 2>/dev/null; do sleep 1; done
  rabbitmqctl --quiet import_definitions "${GLIAFLOW_DEFINITIONS:-/etc/rabbitmq/gliaflow-definitions.json}"
) &
exec docker-entrypoint.sh rabbitmq-server
