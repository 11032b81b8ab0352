#!/bin/sh
# Installs t3-prober, or takes it away again. What it installs is written down in a manifest; what that names and the new
# version does not bring is removed. Data and the operator's own files are never touched: configuration, state, backups,
# builds, accounts.
set -eu

usage() {
  cat <<'HELP'
usage: install.sh [--binary FILE] [--root DIR] [--dry-run]
       install.sh --uninstall [--root DIR] [--dry-run]

  --binary FILE  the program [default: target/release/t3-prober beside this directory]
  --root DIR     install below DIR and start nothing
  --dry-run      only say what would be done
  --uninstall    remove what was installed; data stays

Exit 0: done, and running it again changes nothing. Exit 64: usage. Exit 1: something failed; run it again.
HELP
}

here=$(cd "$(dirname "$0")" && pwd)
source=$(dirname "$here")
binary=$source/target/release/t3-prober
root=
dry=
mode=install
while [ $# -gt 0 ]; do
  case $1 in
    --binary) [ $# -gt 1 ] || { usage >&2; exit 64; }; binary=$2; shift ;;
    --root) [ $# -gt 1 ] || { usage >&2; exit 64; }; root=${2%/}; shift ;;
    --dry-run) dry=1 ;;
    --uninstall) mode=uninstall ;;
    --help) usage; exit 0 ;;
    *) usage >&2; exit 64 ;;
  esac
  shift
done

manifest=/usr/share/t3-prober/manifest
units=/usr/lib/systemd/system
# A root of its own has no services to ask, and neither has a machine that was not started by systemd.
live=
if [ -z "$root" ] && [ -d /run/systemd/system ]; then live=1; fi

say() { echo "install.sh: $*"; }

# run COMMAND…: says it where that is all that is wanted.
run() {
  if [ -n "$dry" ]; then say "would run: $*"; else "$@"; fi
}

# What is installed, a line each: mode, the place there, the file here.
files() {
  echo "0755 /usr/bin/t3-prober $binary"
  for unit in "$here"/systemd/*; do echo "0644 $units/${unit##*/} $unit"; done
  echo "0644 /usr/lib/sysusers.d/t3-prober.conf $here/sysusers.d/t3-prober.conf"
  echo "0644 /usr/lib/tmpfiles.d/t3-prober.conf $here/tmpfiles.d/t3-prober.conf"
  echo "0644 /usr/share/doc/t3-prober/config.example.toml $here/config.example.toml"
  echo "0440 /usr/share/doc/t3-prober/sudoers $here/sudoers"
  for text in "$here"/*.md "$source/METRICS.md"; do
    echo "0644 /usr/share/doc/t3-prober/${text##*/} $text"
  done
  for rules in "$source"/alerts/*.yml; do echo "0644 /usr/share/t3-prober/alerts/${rules##*/} $rules"; done
  for runbook in "$source"/alerts/runbooks/*.md; do
    echo "0644 /usr/share/doc/t3-prober/runbooks/${runbook##*/} $runbook"
  done
  for page in "$source"/dashboards/*.json; do
    [ ! -e "$page" ] || echo "0644 /usr/share/t3-prober/dashboards/${page##*/} $page"
  done
  for example in "$here"/prometheus/*.yml "$here"/alertmanager/*.yml "$here"/alertmanager/*.tmpl "$here"/grafana/*.yml; do
    [ -e "$example" ] || continue
    place=${example%/*}
    echo "0644 /usr/share/doc/t3-prober/${place##*/}/${example##*/} $example"
  done
}

# Whole or not at all, and only where something differs: a service that runs keeps its program until it is restarted.
put() {
  to=$root$2
  if cmp -s "$3" "$to" && [ "$(stat -c %a "$to")" = "${1#0}" ]; then return; fi
  if [ -n "$dry" ]; then say "would install: $to"; return; fi
  mkdir -p "$(dirname "$to")"
  install -m "$1" "$3" "$to.new"
  mv -f "$to.new" "$to"
  say "installed: $to"
}

# The directories that are ours alone, innermost first.
drop_directories() {
  for directory in /usr/share/t3-prober/alerts /usr/share/t3-prober/dashboards /usr/share/t3-prober \
    /usr/share/doc/t3-prober/runbooks /usr/share/doc/t3-prober/prometheus /usr/share/doc/t3-prober/alertmanager \
    /usr/share/doc/t3-prober/grafana /usr/share/doc/t3-prober; do
    [ ! -d "$root$directory" ] || rmdir "$root$directory" 2>/dev/null || say "not empty, left: $root$directory"
  done
}

drop() {
  [ -e "$root$1" ] || return 0
  if [ -n "$dry" ]; then say "would remove: $root$1"; return; fi
  rm -f "$root$1"
  say "removed: $root$1"
}

# The number of an account or a group of that root: field N of the line with that name.
number() { awk -F: -v name="$2" -v field="$3" '$1 == name { print $field }' "$root$1" 2>/dev/null || true; }

# What marks the probes' requests at the dispatch: a key of this host's own, made once. Both services have the group
# t3-prober, and nobody else does.
make_key() {
  key=$root/etc/t3-prober/probe.key
  [ ! -e "$key" ] || return 0
  if [ -n "$dry" ]; then say "would make: $key"; return; fi
  group=$(number /etc/group t3-prober 3)
  rm -f "$key.new"
  (umask 077; od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$key.new")
  if [ -n "$group" ]; then
    chown "0:$group" "$key.new"
    chmod 0440 "$key.new"
  else
    say "no group t3-prober here: give $key to the group of both services, with mode 0440"
  fi
  mv "$key.new" "$key"
  say "made: $key"
}

do_install() {
  if [ ! -x "$binary" ]; then
    say "no program at $binary; build it with: cargo build --release --locked" >&2
    exit 1
  fi
  new=$(files | cut -d' ' -f2)
  if [ -f "$root$manifest" ]; then
    while read -r old; do
      echo "$new" | grep -qxF "$old" || drop "$old"
    done <"$root$manifest"
  fi
  files | while read -r permissions to from; do put "$permissions" "$to" "$from"; done
  if [ -z "$dry" ] && [ "$new" != "$(cat "$root$manifest" 2>/dev/null)" ]; then
    echo "$new" >"$root$manifest.new"
    mv -f "$root$manifest.new" "$root$manifest"
  fi
  run mkdir -p "$root/etc"
  if command -v systemd-sysusers >/dev/null; then
    run systemd-sysusers ${root:+--root="$root"} t3-prober.conf
    run systemd-tmpfiles --create ${root:+--root="$root"} t3-prober.conf
  else
    say "no systemd-sysusers here: make the accounts t3-prober, t3-dispatch and t3-gate, the group t3-helper, and the directories of"
    say "  $root/usr/lib/tmpfiles.d/t3-prober.conf by hand; sudo takes the helper's place, see /usr/share/doc/t3-prober/sudoers"
  fi
  # The operator's: made once, never written again.
  if [ ! -e "$root/etc/t3-prober/config.toml" ]; then
    if [ -n "$dry" ]; then
      say "would install: $root/etc/t3-prober/config.toml"
    else
      mkdir -p "$root/etc/t3-prober"
      prober=$(number /etc/passwd t3-prober 3)
      sed -e 's|^#socket = "/run/t3-prober-helper.sock" # no default|socket = "/run/t3-prober-helper.sock"|' \
        -e 's|^#box_socket = "/run/t3-prober-box.sock" # no default|box_socket = "/run/t3-prober-box.sock"|' \
        ${prober:+-e "s|^#trusted_uids = \[33\] # no default|#trusted_uids = [0, $prober] # no default; root and t3-prober|"} \
        "$here/config.example.toml" >"$root/etc/t3-prober/config.toml.new"
      chmod 0644 "$root/etc/t3-prober/config.toml.new"
      mv "$root/etc/t3-prober/config.toml.new" "$root/etc/t3-prober/config.toml"
      say "installed: $root/etc/t3-prober/config.toml"
    fi
  fi
  if [ -n "$dry" ] || [ -d "$root/etc/t3-prober" ]; then make_key; fi
  if [ -n "$live" ]; then run systemctl daemon-reload; fi
  say "next: edit $root/etc/t3-prober/config.toml, then t3-prober check"
}

do_uninstall() {
  if [ ! -f "$root$manifest" ]; then
    say "nothing is installed here"
    return
  fi
  if [ -n "$live" ]; then
    for unit in t3-prober-enforce.timer t3-prober-drain.timer t3-prober-backup.timer t3-dispatch.socket \
      t3-dispatch.service t3-prober-gate.timer t3-prober-gate.path t3-prober.service t3-prober-box.socket \
      t3-prober-helper.socket; do
      run systemctl disable --now "$unit" || say "could not stop $unit"
    done
  fi
  while read -r file; do drop "$file"; done <"$root$manifest"
  # As it was installed it is nobody's work; changed, it is the operator's.
  config=$root/etc/t3-prober/config.toml
  # A secret that opens nothing any more.
  drop /etc/t3-prober/probe.key
  if [ -e "$config" ] && ! grep -qvE '^(#.*|\[.*\]|(box_)?socket = "/run/t3-prober-(helper|box).sock"|)$' "$config"; then
    drop /etc/t3-prober/config.toml
    [ -n "$dry" ] || rmdir "$root/etc/t3-prober" 2>/dev/null || true
  fi
  drop "$manifest"
  if [ -z "$dry" ]; then drop_directories; fi
  if [ -n "$live" ]; then run systemctl daemon-reload; fi
  say "left, because it is data: /etc/t3-prober /var/lib/t3-prober /var/lib/t3-prober-{helper,gate} /var/backups/t3 /opt/t3,"
  say "  and the accounts t3-prober, t3-dispatch and t3-gate, whose it is"
}

case $mode in
  install) do_install ;;
  uninstall) do_uninstall ;;
esac
