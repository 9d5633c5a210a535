"""A private certificate authority and the server's certificate, made and renewed by scripts to be read first."""

from __future__ import annotations

__all__ = ["RENEWAL", "SCRIPT"]

SCRIPT = r"""#!/bin/sh
# Makes, or renews, the certificate of a pool's Redis, signed by a private authority that it makes the first time.
#
#   make-certs.sh FOLDER HOST...
#
# HOST is a name or an address under which the server is reached, as it stands in URLs. In FOLDER afterwards:
#   ca.crt      the authority's certificate: every client needs it (ssl_ca_certs in its URL)
#   ca.key      the authority's key: needed only to renew; keep it where only root reads it
#   server.crt  the server's certificate, for 820 days: Apple's libraries take none that lasts more than 825
#   server.key  its key
# Run it again before they are over: the authority stays, so no client changes.
set -eu
umask 077

folder=${1:?usage: make-certs.sh FOLDER HOST...}
shift
[ $# -gt 0 ] || { echo "make-certs.sh: name at least one host" >&2; exit 2; }
mkdir -p "$folder"
cd "$folder"

names=""
for host in "$@"; do
  case $host in
    *[!0-9A-Za-z.:_*-]*) echo "make-certs.sh: $host is no host name or address" >&2; exit 2 ;;
    *:*) kind=IP ;;
    *[!0-9.]*) kind=DNS ;;
    *) kind=IP ;;
  esac
  names="${names:+$names,}$kind:$host"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/request.cnf" <<END
[req]
distinguished_name = name
prompt = no
[name]
CN = promptmill pool
[ca]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $names
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
END

if [ -e ca.crt ] && [ ! -e ca.key ]; then
  echo "make-certs.sh: $(pwd)/ca.key is not there: put it back. Without ca.crt too a new authority is made, whose" \
    "ca.crt every client then needs" >&2
  exit 2
fi
if [ ! -e ca.key ]; then
  openssl ecparam -name prime256v1 -genkey -noout -out "$work/ca.key"
  openssl req -new -x509 -sha256 -days 3650 -config "$work/request.cnf" -extensions ca \
    -key "$work/ca.key" -out "$work/ca.crt"
  cp "$work/ca.key" ca.key
  cp "$work/ca.crt" ca.crt
fi
openssl ecparam -name prime256v1 -genkey -noout -out "$work/server.key"
openssl req -new -sha256 -config "$work/request.cnf" -subj "/CN=$1" -key "$work/server.key" -out "$work/server.csr"
openssl x509 -req -sha256 -days 820 -in "$work/server.csr" -CA ca.crt -CAkey ca.key -CAserial "$work/serial" \
  -CAcreateserial -extfile "$work/request.cnf" -extensions server -out "$work/server.crt" 2>"$work/said" ||
  { cat "$work/said" >&2; exit 1; }
# The key last is the one that the certificate is for: both are whole files when they are put there.
mv "$work/server.crt" server.crt
mv "$work/server.key" server.key
chmod 644 ca.crt server.crt
echo "$(pwd)/server.crt: $names, until $(openssl x509 -in server.crt -noout -enddate | cut -d= -f2)"
"""

RENEWAL = r"""#!/bin/sh
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
"""
