#!/bin/sh
# The command of each node of the cluster: the cookie by which nodes know each other, then start.sh.
#
# The first node that starts draws the cookie and leaves it in a volume that all share; `ln` lets only one be first.
set -eu
shared=/cookie/erlang.cookie
if [ ! -s "$shared" ]; then
  mine="$shared.$(hostname)"
  (umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$mine")
  ln "$mine" "$shared" 2>/dev/null || true
  rm -f "$mine"
fi
own=/var/lib/rabbitmq/.erlang.cookie
cp -f "$shared" "$own"
chown rabbitmq:rabbitmq "$own"
chmod 400 "$own"
exec sh /etc/rabbitmq/gliaflow-start.sh
