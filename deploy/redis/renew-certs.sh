#!/bin/sh
# Renews the server's certificate in its last 90 days, and starts the server anew with it; before that it does nothing.
#
#   renew-certs.sh LABEL USER HOST...
#
# LABEL is the server's daemon, USER who it runs as, HOST as for make-certs.sh, which is beside this script.
set -eu
[ $# -gt 2 ] || { echo "usage: renew-certs.sh LABEL USER HOST..." >&2; exit 2; }
label=$1
user=$2
shift 2
cd "$(dirname "$0")"

own() {
  chmod 400 tls/server.key
  chown "$user" tls/server.key
}

if openssl x509 -checkend 7776000 -noout -in tls/server.crt >/dev/null; then
  own # also where a renewal broke off just before that
  exit 0
fi
sh make-certs.sh tls "$@"
own
case $(uname) in
  Darwin) launchctl kickstart -k "system/$label" ;;
  *) systemctl try-restart "$label.service" ;;
esac
